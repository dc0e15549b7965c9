# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hook could not do is done by itself once it can be, and is an alert until then; nobody calls reconcile.

Daemon and libvirtd live on in all of it. The state of the daemon is on a file system of a few MiB, which fills up.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.rig.command import reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.full_disk import fill
from tests.rig.killed_daemon import left_in
from tests.rig.private_libvirt import HOOK, PrivateLibvirt, write_hook
from tests.rig.processes import RigError, wait_for
from virt_dmem.native.programs import HOOK_CLIENT

MIB = 1 << 20
GUEST = 64 * MIB
POOL = "small"
HOOKS = Path("/etc/libvirt/hooks/qemu.d")
FILLER = STATE / "filler"


@pytest.fixture
def small_disk(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[None]:
    """The state directory on 4 MiB of tmpfs, with a pool and two domains in it."""
    daemon.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "state", STATE], check=True)
    daemon.start()
    virt_dmem("pool", "create", POOL, "--backend", "tmpfs", "--size", "256M")
    for name in ("first", "second"):
        libvirtd.define(domain_xml(name))
        virt_dmem("apply", name, "--pool", POOL)
    yield
    FILLER.unlink(missing_ok=True)
    libvirtd.install_hook(HOOK)
    libvirtd.remove()
    if not daemon.program.running:
        daemon.start()
    wait_for("all memory", lambda: reserved(POOL) == 0)
    virt_dmem("pool", "destroy", POOL)
    daemon.stop()
    subprocess.run(["umount", STATE], check=True)


@contextmanager
def full_disk() -> Iterator[None]:
    fill(FILLER)
    yield
    FILLER.unlink()


@contextmanager
def hook_that(script: str) -> Iterator[None]:
    """Run a script as a hook after virt-dmem's."""
    hook = HOOKS / "60-after"
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)
    yield
    hook.unlink()


def alerts() -> dict[str, str]:
    return {alert["code"]: f"{alert['message']} {alert['hint']}" for alert in virt_dmem_json("alerts")["alerts"]}


def require_settled(used: int = 0) -> None:
    """All is in order soon, without anybody's doing."""
    wait_for("the memory of the ended guest", lambda: reserved(POOL) == used)
    wait_for("the end of its alert", lambda: "reconcile-failed" not in alerts())
    assert used or left_in(POOL) == []


def require_alert(word: str) -> None:
    """There is an alert, which names the place and the remedy."""
    said = wait_for("an alert", lambda: alerts().get("reconcile-failed"))
    assert word in said
    assert str(STATE) in said


def test_a_guest_that_ends_while_the_disk_is_full_is_freed_when_it_is_not(
    libvirtd: PrivateLibvirt, small_disk: None
) -> None:
    for name in ("first", "second"):
        libvirtd.virsh("start", "--paused", name)
    with full_disk():
        libvirtd.virsh("destroy", "first")
        assert reserved(POOL) == 2 * GUEST
        require_alert("Free space on the file system of")
        assert libvirtd.state("second") == "paused"
    require_settled(GUEST)
    assert libvirtd.state("second") == "paused"


def test_what_was_replaced_in_a_domain_is_remembered_when_the_disk_is_not_full_any_more(
    libvirtd: PrivateLibvirt, small_disk: None
) -> None:
    with full_disk():
        uuid = libvirtd.define(domain_xml("third"))
        virt_dmem("apply", "third", "--pool", POOL)
        require_alert(uuid)
    wait_for("it to be remembered", (STATE / "applied" / uuid).exists)
    require_settled()


@pytest.mark.parametrize(("full_at", "phase"), [("prepare", "prepared"), ("start", "linked")])
def test_a_start_that_is_refused_on_a_full_disk_is_undone_when_it_is_not(
    libvirtd: PrivateLibvirt, small_disk: None, full_at: str, phase: str
) -> None:
    with (
        hook_that(f'[ "$2" != {full_at} ] || cat /dev/zero >>{FILLER} 2>/dev/null; exit 0'),
        pytest.raises(RigError, match="disk is full"),
    ):
        libvirtd.virsh("start", "--paused", "first")
    assert virt_dmem_json("list")["domains"][0]["phase"] == phase
    require_alert("Free space on the file system of")
    FILLER.unlink()
    require_settled()
    libvirtd.virsh("start", "--paused", "first")


def test_a_guest_that_ends_while_the_disk_is_full_and_the_daemon_is_killed_is_freed(
    libvirtd: PrivateLibvirt, small_disk: None, daemon: Daemon
) -> None:
    libvirtd.virsh("start", "--paused", "first")
    with full_disk():
        daemon.kill()
        libvirtd.virsh("destroy", "first")
        daemon.start()
        require_alert("Free space on the file system of")
    require_settled()


def test_a_guest_that_ends_while_the_ledger_is_locked_is_freed_when_it_is_not(
    libvirtd: PrivateLibvirt, small_disk: None
) -> None:
    libvirtd.virsh("start", "--paused", "first")
    with closing(sqlite3.connect(STATE / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        libvirtd.virsh("destroy", "first")
        require_alert("fuser")
        other.execute("ROLLBACK")
    require_settled()


@pytest.mark.parametrize("how", ["not executable", "missing", "killed", "another format"])
def test_a_guest_that_ends_while_the_hooks_program_does_not_run_is_freed(
    libvirtd: PrivateLibvirt, small_disk: None, tmp_path: Path, how: str
) -> None:
    program = tmp_path / "virt-dmem-hook"
    shutil.copy(HOOK_CLIENT, program)
    tmp_path.chmod(0o755)
    write_hook(tmp_path / "hook", hook=HOOK, client=program)
    shutil.move(tmp_path / "hook", HOOKS / "50-virt-dmem")
    libvirtd.virsh("start", "--paused", "first")
    if how == "not executable":
        program.chmod(0)
    elif how == "missing":
        program.unlink()
    else:
        program.unlink()
        program.write_text("#!/bin/sh\nkill -9 $$\n" if how == "killed" else "\x7fELF")
        program.chmod(0o755)
    libvirtd.virsh("destroy", "first")
    require_settled()
    libvirtd.install_hook(HOOK)
    libvirtd.virsh("start", "--paused", "first")


def test_a_guest_whose_qemu_dies_while_the_hook_is_replaced_is_freed(
    libvirtd: PrivateLibvirt, small_disk: None
) -> None:
    libvirtd.virsh("start", "--paused", "first")
    (HOOKS / "50-virt-dmem").chmod(0)
    os.kill(libvirtd.qemu_pids()["first"], 9)
    require_settled()


def test_a_start_that_takes_long_keeps_its_memory(libvirtd: PrivateLibvirt, small_disk: None) -> None:
    """Longer than a domain is doubted, between any two of its hooks."""
    for operation in ("prepare", "start"):
        with hook_that(f'[ "$2" != {operation} ] || sleep 12'):
            libvirtd.virsh("start", "--paused", "first")
        assert reserved(POOL) == GUEST
        assert "reconcile-failed" not in alerts()
        (extent,) = virt_dmem_json("show", "first")["domain"]["extents"]
        maps = Path(f"/proc/{libvirtd.qemu_pids()['first']}/maps").read_text()
        assert f" {Path(extent['path']).stat().st_ino} " in maps
        libvirtd.virsh("destroy", "first")
    require_settled()
