# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool``, ``list`` and ``show`` with a real virt-dmemd and real mounts, without libvirt."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rig.answers import require_documented
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import main
from virt_dmem.errors import DaemonUnreachable, ExitStatus
from virt_dmem.host.mounts import mount_at
from virt_dmem.ipc.client import Client
from virt_dmem.units import MIB


class Command:
    """The command under one configuration."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        self._config = directory / "virt-dmem.toml"
        self._config.write_text(
            f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            '[libvirt]\nuri = "test:///default"\n'
        )

    def __call__(self, *args: str, status: int = ExitStatus.DONE) -> str:
        """Run it, and return what it said on stdout; on stderr where it is to fail."""
        found = main([*args, "--config", str(self._config)])
        said = self._capsys.readouterr()
        assert found == status, said
        return said.err if status else said.out

    def json(self, *args: str) -> Any:
        answer = require_documented([*args, "--json"], self(*args, "--json"))
        assert answer.pop("schema") == 1
        return answer

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """A virt-dmemd runs meanwhile."""
        arguments = [sys.executable, "-m", "virt_dmem.daemon.main", "--config", str(self._config)]
        log = self.directory / "log"
        with log.open("wb") as file, subprocess.Popen(arguments, cwd=REPOSITORY, stderr=file) as process:
            try:
                self._wait(process, log)
                yield
            finally:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    pytest.fail(f"virt-dmemd did not end: {log.read_text()}")

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        for _ in range(2400):
            try:
                with Client(self.directory / "run/sock") as client:
                    client.call("ListPools")
                    return
            except DaemonUnreachable:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        pytest.fail(f"virt-dmemd did not come up: {log.read_text()}")


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@in_own_mount_namespace
def test_a_pool_is_made_shown_and_given_back_without_a_daemon(command: Command) -> None:
    made = command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]
    assert (made["capacity_bytes"], made["state"], made["reserved_bytes"]) == (8 * MIB, "ready", None)
    listed = command("pool", "list").splitlines()
    assert listed[0].split() == ["NAME", "BACKEND", "PAGES", "CAPACITY", "RESERVED", "FREE", "STATE"]
    assert listed[1].split() == ["small", "tmpfs", "4", "KiB", "8", "MiB", "-", "-", "ready"]
    assert command("pool", "list", "-o", "mount,name").splitlines()[1].split() == [
        str(command.directory / "run/pools/small"),
        "small",
    ]
    assert "any" in command("pool", "show", "small")
    assert command.json("savings")["pools"][0]["net_bytes"] == 0
    assert "small" in command("savings")
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs", status=ExitStatus.FAILED)
    command("pool", "destroy", "small")
    assert command.json("pool", "list") == {"pools": []}
    assert "no pool 'small'" in command("pool", "destroy", "small", status=ExitStatus.FAILED)
    assert "no pool 'small'" in command("pool", "show", "small", status=ExitStatus.FAILED)


@in_own_mount_namespace
def test_destroy_says_when_the_kernel_lost_pages_meanwhile(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's taint is a stand-in: no test makes a kernel lose memory."""
    command("pool", "create", "small", "--size", "1M", "--backend", "tmpfs")
    met = iter([False, True])
    monkeypatch.setattr("virt_dmem.host.kernel.bad_pages_met", lambda: next(met))
    noted: list[str] = []
    monkeypatch.setattr("virt_dmem.cli.output.Output.note", lambda _self, text: noted.append(text))
    command("pool", "destroy", "small")
    assert any("Bad page state" in text for text in noted)


@in_own_mount_namespace
def test_a_pool_of_tmpfs_asks_for_huge_pages_and_keeps_them_when_it_is_resized(command: Command) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists():
        pytest.skip("needs a kernel with huge pages for tmpfs")
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    for size in ("8192k", "16384k"):
        found = mount_at(mount)
        assert found is not None
        assert {"huge=within_size", f"size={size}"} <= set(found.options.split(","))
        command("pool", "resize", "small", "--size", "16M")
    command("pool", "destroy", "small")


@in_own_mount_namespace
def test_a_pool_with_a_file_in_it_is_kept_also_when_no_daemon_can_be_asked(command: Command) -> None:
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    (mount / "extent").write_bytes(b"guest memory")
    assert "holds 1 files" in command("pool", "destroy", "small", status=ExitStatus.FAILED)
    assert (mount / "extent").read_bytes() == b"guest memory"


@in_own_mount_namespace
def test_the_daemon_hears_of_a_pool_that_is_made_and_of_one_that_goes(command: Command) -> None:
    with command.daemon():
        assert command.json("pool", "list") == {"pools": []}
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        (seen,) = command.json("pool", "list")["pools"]
        assert (seen["name"], seen["reserved_bytes"], seen["free_bytes"]) == ("small", 0, 8 * MIB)
        assert command.json("pool", "show", "small")["pool"] == seen
        command("pool", "destroy", "small")
        assert command.json("pool", "list") == {"pools": []}


@in_own_mount_namespace
def test_a_pool_that_could_not_be_destroyed_gives_memory_again(command: Command) -> None:
    with command.daemon():
        mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
        (mount / "stray").touch()
        command("pool", "destroy", "small", status=ExitStatus.FAILED)
        assert command.json("pool", "show", "small")["pool"]["state"] == "ready"


@in_own_mount_namespace
def test_a_pool_is_mounted_again_and_one_that_is_there_left_alone(command: Command) -> None:
    mount = command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"]
    command("pool", "mount", "small")
    subprocess.run(["umount", mount], check=True)
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 0
    assert mount in command("pool", "mount", "small")
    assert command.json("pool", "list")["pools"][0]["capacity_bytes"] == 8 * MIB


@in_own_mount_namespace
def test_a_pool_is_resized_and_the_daemon_hears_of_it(command: Command) -> None:
    with command.daemon():
        command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
        said = command("pool", "resize", "small", "--size", "16M", "--dry-run")
        assert said == "Would make segment small larger: 16 MiB instead of 8 MiB\n"
        assert command.json("pool", "show", "small")["pool"]["capacity_bytes"] == 8 * MIB
        assert command("pool", "resize", "small", "--size", "16M").splitlines()[-1] == "Pool small has 16 MiB."
        (seen,) = command.json("pool", "list")["pools"]
        assert (seen["capacity_bytes"], seen["free_bytes"]) == (16 * MIB, 16 * MIB)
        assert "already" in command("pool", "resize", "small", "--size", "16M")
        changes = command.json("pool", "resize", "small", "--size", "4M")["changes"]
        assert changes == [{"segment": "small", "before": {"-1": 16 * MIB}, "after": {"-1": 4 * MIB}}]
    command("pool", "resize", "small", status=ExitStatus.USAGE)
    command("pool", "resize", "small", "--size", "100", status=ExitStatus.USAGE)
    command("pool", "resize", "large", "--size", "4M", status=ExitStatus.FAILED)


def test_domains_are_listed_by_the_daemon_and_an_unknown_one_is_an_error(command: Command) -> None:
    with command.daemon():
        assert command.json("list") == {"domains": []}
        assert command("list").split() == ["NAME", "PHASE", "RESERVED", "POOLS", "UUID"]
        assert "ghost" in command("show", "ghost", status=ExitStatus.FAILED)
        assert command.json("list", "--applied") == {"domains": []}
        assert command.json("reconcile", "--dry-run") == {"actions": []}
        assert command("reconcile") == "Nothing to do.\n"
