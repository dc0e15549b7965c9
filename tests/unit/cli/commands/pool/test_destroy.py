# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool destroy``, with real mounts."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.golden import GOLDEN
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.processes import wait_for
from virt_dmem.cli import pool_changes
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import DaemonUnreachable, ExitStatus, PoolNotFound
from virt_dmem.host import hvo_bug
from virt_dmem.ipc.client import Client
from virt_dmem.native.programs import HELPER
from virt_dmem.pools import prezeroed_files
from virt_dmem.pools.backends import table


@in_own_mount_namespace
def test_a_pool_with_a_file_in_it_is_kept_also_when_no_daemon_can_be_asked(command: Command) -> None:
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    (mount / "extent").write_bytes(b"guest memory")
    assert "Pool small contains 1 file (extent).\n" in command("pool", "destroy", "small", status=ExitStatus.FAILED)
    assert (mount / "extent").read_bytes() == b"guest memory"


@in_own_mount_namespace
def test_a_pool_that_could_not_be_destroyed_gives_memory_again(command: Command) -> None:
    with command.daemon():
        mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
        (mount / "stray").touch()
        command("pool", "destroy", "small", status=ExitStatus.FAILED)
        assert command.json("pool", "show", "small")["pool"]["state"] == "ready"


@in_own_mount_namespace
def test_a_dry_run_says_what_would_be_given_back_and_keeps_the_pool(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    assert "give 8 MiB back to the host" in command("pool", "destroy", "small", "--dry-run")
    answer = command.json("pool", "destroy", "small", "--dry-run")
    assert answer == {"pool": "small", "destroyed": False, "given_back_bytes": 8 << 20}
    assert command.json("pool", "destroy", "small")["destroyed"] is True


@in_own_mount_namespace
def test_a_dry_run_does_not_count_the_pre_zeroing_that_a_real_one_ends(command: Command, tmp_path: Path) -> None:
    """A renamed sleep(1) is the stand-in for the helper."""
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    helper = shutil.copy("/bin/sleep", tmp_path / HELPER.name)
    file = mount / prezeroed_files.DIRECTORY / "extent"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with file.open() as opened, subprocess.Popen([helper, "600"], stdin=opened) as process:
        opened.close()
        try:
            command("pool", "destroy", "small", "--dry-run")
            assert "is used by 1 process (virt-dmem-prefa" in command(
                "pool", "destroy", "small", status=ExitStatus.FAILED
            )
        finally:
            process.kill()
    command("pool", "destroy", "small")


@in_own_mount_namespace
def test_a_kernel_that_loses_what_it_frees_is_told_of_before_and_needs_force(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's verdict is a stand-in: no test makes a kernel lose memory."""
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    kind = type(table.BACKENDS["tmpfs"])
    monkeypatch.setattr(kind, "freeing", lambda *_args, **_more: hvo_bug.Verdict.BAD)
    for args in (["destroy", "small"], ["destroy", "small", "--dry-run"], ["resize", "small", "--size", "4M"]):
        said = command("pool", *args, status=ExitStatus.FAILED)
        assert "gone until the next boot. Nothing was changed." in said
        assert "--force" in said
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 8 << 20
    command("pool", "resize", "small", "--size", "16M")
    command("pool", "resize", "small", "--size", "4M", "--force")
    command("pool", "destroy", "small", "--force")
    assert command.json("pool", "list") == {"pools": []}


def wait_until_ready(command: Command) -> None:
    """virt-dmemd notices by itself that the command is gone."""
    wait_for("the pool to give memory", lambda: command.json("pool", "show", "small")["pool"]["state"] == "ready")


@in_own_mount_namespace
def test_with_wait_a_pool_is_drained_first_and_gives_memory_again_if_that_takes_too_long(command: Command) -> None:
    xml = re.sub(rb"(emory unit='KiB'>)\d+", rb"\g<1>4096", (GOLDEN / "plain-in.xml").read_bytes())
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")

        def hook(operation: str) -> None:
            with Client(command.directory / "run/sock") as daemon:
                for _ in daemon.call_more("Hook", operation=operation, xml=apply(xml, pool="small").decode()):
                    pass

        hook("prepare")
        said = command("pool", "destroy", "small", "--wait", "--timeout", "1s", status=ExitStatus.FAILED)
        assert "Domains still hold 4 MiB of pool small after 1 s" in said
        assert "The pool gives memory again. 'virt-dmem list' lists them" in said
        wait_until_ready(command)
        command("pool", "drain", "small")
        said = command("pool", "drain", "small", "--wait", "--timeout", "1s", status=ExitStatus.FAILED)
        assert "The pool is still draining. 'virt-dmem list' lists them" in said
        assert command.json("pool", "show", "small")["pool"]["state"] == "draining"
        later = threading.Timer(0.5, hook, ["release"])
        later.start()
        command("pool", "destroy", "small", "--wait")
        later.join()
        assert command.json("pool", "list") == {"pools": []}
    assert "--timeout requires --wait" in command(
        "pool", "destroy", "x", "--timeout", "1s", status=ExitStatus.USAGE
    )


@in_own_mount_namespace
def test_a_dry_run_names_the_domains_as_the_real_one_does_and_nobody_is_asked_for_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = re.sub(rb"(emory unit='KiB'>)\d+", rb"\g<1>4096", (GOLDEN / "plain-in.xml").read_bytes())
    applied = apply(xml, pool="small").decode()
    monkeypatch.setattr("virt_dmem.cli.commands.pool.destroy.confirm", lambda *_: pytest.fail("was asked"))
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        with Client(command.directory / "run/sock") as daemon:
            for _ in daemon.call_more("Hook", operation="prepare", xml=applied):
                pass
            dry = command("pool", "destroy", "small", "--dry-run", status=ExitStatus.FAILED)
            assert dry == command("pool", "destroy", "small", status=ExitStatus.FAILED)
            name = daemon.call("ListDomains")["domains"][0]["name"]
            assert f"Domains hold 4 MiB of pool small: {name}." in dry
            for _ in daemon.call_more("Hook", operation="release", xml=applied):
                pass
    command("pool", "destroy", "small", "--dry-run")


@in_own_mount_namespace
def test_with_wait_a_daemon_that_is_restarted_ends_the_wait_and_the_pool_gives_memory_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restart is a stand-in: a connection that breaks while the pool drains."""

    def breaks(daemon: Client, *_: object) -> None:
        daemon.close()
        raise DaemonUnreachable("virt-dmemd does not answer: it closed the connection.", hint="")

    monkeypatch.setattr(pool_changes, "wait_until_empty", breaks)
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        command("pool", "destroy", "small", "--wait", status=ExitStatus.DAEMON_UNREACHABLE)
        wait_until_ready(command)


@in_own_mount_namespace
def test_a_pool_that_drains_for_a_command_gives_memory_again_when_that_is_gone_unless_it_was_drained_before(
    command: Command,
) -> None:
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        for drained in (False, True):
            if drained:
                command("pool", "drain", "small")
            with Client(command.directory / "run/sock") as killed:
                killed.call("EmptyPool", name="small")
                assert command.json("pool", "show", "small")["pool"]["state"] == "draining"
                with pytest.raises(PoolNotFound):
                    killed.call("EmptyPool", name="samll")
            if not drained:
                wait_until_ready(command)
        assert command.json("pool", "show", "small")["pool"]["state"] == "draining"
        command("pool", "drain", "small", "--undo")
