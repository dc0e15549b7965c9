# SPDX-License-Identifier: GPL-2.0-or-later
"""A SIGKILL of a pool command and of the daemon, between any two steps: no page leaks, no guest is harmed.

The steps are not sampled: the command is killed before its first step, before its second, and so on, until it
comes to its end. ``tests/rig/killing_command.py`` defines a step.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.killing_command import Ending, command_killed_before
from tests.rig.namespace import mount_points_below
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for
from virt_dmem.host import huge_pages

MIB = 1 << 20
PAGE = 2 * MIB
MOST_STEPS = 100
MOUNTS = Path("/run/virt-dmem/pools")
RECORDS = Path("/var/lib/virt-dmem/pools")


class Host:
    """The pool ``huge`` with a guest of 64 MiB in it that must never notice anything."""

    def __init__(self, libvirtd: PrivateLibvirt, daemon: Daemon) -> None:
        self.libvirtd, self.daemon = libvirtd, daemon
        self.before = huge_pages.counters(PAGE).pages
        virt_dmem("pool", "create", "huge", "--size", "64M", "--page-size", "2M")
        libvirtd.define(domain_xml("witness"))
        virt_dmem("apply", "witness", "--pool", "huge")
        libvirtd.virsh("start", "--paused", "witness")
        self.pid = libvirtd.qemu_pids()["witness"]
        (extent,) = virt_dmem_json("show", "witness")["domain"]["extents"]
        self.extent = Path(extent["path"])

    def sure(self, *args: str) -> None:
        ending = command_killed_before(None, *args)
        assert ending.status == 0, ending.said

    def revive(self) -> None:
        self.daemon.restart()
        self.sure("reconcile")

    def require(self, *segments: str, size_bytes: int) -> None:
        """Pages, mounts, records and the ledger are those of these segments, and the guest is as it was."""
        assert huge_pages.counters(PAGE).pages - self.before == size_bytes // PAGE
        assert sorted(mount_points_below(MOUNTS)) == [str(MOUNTS / name) for name in segments]
        assert sorted(path.name for path in MOUNTS.iterdir()) == list(segments)
        assert sorted(path.stem for path in RECORDS.glob("[!.]*.json")) == list(segments)
        shown = virt_dmem_json("pool", "list")["pools"]
        assert sum(pool["capacity_bytes"] for pool in shown) == size_bytes
        assert sum(pool["reserved_bytes"] for pool in shown) == 64 * MIB
        self.require_guest()

    def require_guest(self) -> None:
        assert self.libvirtd.qemu_pids()["witness"] == self.pid
        assert f" {self.extent.stat().st_ino} " in Path(f"/proc/{self.pid}/maps").read_text()

    def each_kill(self, *args: str) -> Iterator[str]:
        """Run the command, killed before each of its steps; yield each step, the daemon serving again."""
        for number in range(MOST_STEPS):
            ending: Ending = command_killed_before(number, *args, beside=self.daemon.pid)
            if not ending.step:
                assert ending.status == 0, ending.said
                assert number >= 10, "the loop does not end"
                print(f"{' '.join(args)}: {number} steps")
                return
            self.revive()
            self.require_guest()
            yield ending.step
        raise AssertionError(f"more than {MOST_STEPS} steps")


@pytest.fixture
def pool_host(libvirtd: PrivateLibvirt, daemon: Daemon, exclusive_hugepages: None) -> Iterator[Host]:
    made = Host(libvirtd, daemon)
    yield made
    if not daemon.program.running:
        daemon.start()
    libvirtd.remove()
    virt_dmem("reconcile")
    for pool in virt_dmem_json("pool", "list")["pools"]:
        virt_dmem("pool", "destroy", pool["name"])
    assert huge_pages.counters(PAGE).pages == made.before


CREATE = ("pool", "create", "other", "--size", "16M", "--page-size", "2M")
DESTROY = ("pool", "destroy", "other")


@pytest.mark.needs_hugepages
def test_a_create_killed_between_any_two_steps_is_undone_whole(pool_host: Host) -> None:
    for step in pool_host.each_kill(*CREATE):
        ending = command_killed_before(None, *CREATE)
        if ending.status:  # what there is of it is in its record
            assert "Pool other exists already" in ending.said, step
        else:
            pool_host.require("huge", "other", size_bytes=80 * MIB)
        pool_host.sure(*DESTROY)
        pool_host.require("huge", size_bytes=64 * MIB)
    pool_host.require("huge", "other", size_bytes=80 * MIB)


@pytest.mark.needs_hugepages
def test_a_destroy_killed_between_any_two_steps_is_finished_by_another(pool_host: Host) -> None:
    pool_host.sure(*CREATE)
    for step in pool_host.each_kill(*DESTROY):
        ending = command_killed_before(None, *DESTROY)
        assert ending.status == 0 or "There is no pool 'other'" in ending.said, step
        pool_host.require("huge", size_bytes=64 * MIB)
        pool_host.sure(*CREATE)
    pool_host.require("huge", size_bytes=64 * MIB)


@pytest.mark.needs_hugepages
@pytest.mark.parametrize(
    ("was", "becomes", "segments"),
    [
        pytest.param(64, 80, ("huge", "huge+1"), id="larger"),
        pytest.param(80, 72, ("huge", "huge+1"), id="smaller"),
        pytest.param(80, 64, ("huge",), id="without its segment"),
    ],
)
def test_a_resize_killed_between_any_two_steps_is_finished_by_another(
    pool_host: Host, was: int, becomes: int, segments: tuple[str, ...]
) -> None:
    def resize(size: int) -> tuple[str, ...]:
        return "pool", "resize", "huge", "--size", f"{size}M"

    pool_host.sure(*resize(was))
    for step in pool_host.each_kill(*resize(becomes)):
        ending = command_killed_before(None, *resize(becomes))
        if ending.status:
            assert "virt-dmem pool mount huge" in ending.said, step
            pool_host.sure("pool", "mount", "huge")
            pool_host.sure(*resize(becomes))
        pool_host.require(*segments, size_bytes=becomes * MIB)
        pool_host.sure(*resize(was))
    pool_host.require(*segments, size_bytes=becomes * MIB)


# The command alone is killed: virt-dmemd lives on, and must not keep what it was told


GUEST = 64 * MIB


class Small:
    """The pool ``small`` of tmpfs, 256 MiB, with a guest of 64 MiB in it."""

    def __init__(self, libvirtd: PrivateLibvirt) -> None:
        self.libvirtd = libvirtd
        for name in ("witness", "next"):
            libvirtd.define(domain_xml(name))
            virt_dmem("apply", name, "--pool", "small")

    def pool(self) -> dict[str, Any]:
        """The pool, once virt-dmemd noticed that the command is gone; empty: there is none."""

        def pools() -> list[dict[str, Any]]:
            return list(virt_dmem_json("pool", "list")["pools"])

        wait_for("virt-dmemd to let go of the pool", lambda: all(pool["state"] != "draining" for pool in pools()))
        return next(iter(pools()), {})

    def serves(self) -> None:
        """A guest starts and ends, whatever became of the command."""
        self.libvirtd.virsh("start", "--paused", "next")
        assert self.pool()["reserved_bytes"] <= self.pool()["capacity_bytes"]
        self.libvirtd.virsh("destroy", "next")
        wait_for("its memory", lambda: reserved("small") == (GUEST if self.runs() else 0))

    def runs(self) -> bool:
        return "witness" in self.libvirtd.qemu_pids()

    def each_kill(self, *args: str, least: int) -> Iterator[str]:
        for number in range(MOST_STEPS):
            ending = command_killed_before(number, *args)
            if not ending.step:
                assert number >= least
                print(f"{' '.join(args)}: {number} steps, then {ending.said}")
                return
            yield ending.step
        raise AssertionError(f"more than {MOST_STEPS} steps")


@pytest.fixture
def small(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[Small]:
    virt_dmem("pool", "create", "small", "--backend", "tmpfs", "--size", "256M")
    yield Small(libvirtd)
    libvirtd.remove()
    for pool in virt_dmem_json("pool", "list")["pools"]:
        virt_dmem("pool", "destroy", pool["name"])


@pytest.mark.needs_tmpfs
@pytest.mark.parametrize("options", [(), ("--wait",)], ids=["at once", "with --wait"])
def test_a_pool_whose_destruction_was_killed_serves_or_is_destroyed_by_another(
    small: Small, options: tuple[str, ...]
) -> None:
    for step in small.each_kill("pool", "destroy", "small", *options, least=8):
        if (there := small.pool()) and there["state"] == "ready":
            small.serves()
        elif there:
            assert there["state"] == "destroying", step
            virt_dmem("pool", "destroy", "small")
        if not small.pool():
            virt_dmem("pool", "create", "small", "--backend", "tmpfs", "--size", "256M")
    assert small.pool() == {}


@pytest.mark.needs_tmpfs
def test_a_destruction_that_is_refused_or_killed_while_a_guest_runs_changes_nothing(small: Small) -> None:
    small.libvirtd.virsh("start", "--paused", "witness")
    before = small.pool()
    for _ in small.each_kill("pool", "destroy", "small", least=1):
        assert small.pool() == before
    small.serves()
    assert small.pool() == before


@pytest.mark.needs_tmpfs
def test_a_pool_whose_destruction_was_killed_while_it_waited_for_a_guest_serves(small: Small) -> None:
    small.libvirtd.virsh("start", "--paused", "witness")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "virt_dmem.cli.main", "pool", "destroy", "small", "--wait", "--yes"]
    )
    wait_for("it to drain the pool", lambda: virt_dmem_json("pool", "list")["pools"][0]["state"] == "draining")
    waiting.kill()
    waiting.wait()
    small.serves()


@pytest.mark.needs_tmpfs
@pytest.mark.parametrize("asked", [32, 96, 512])
def test_a_resize_in_place_that_is_killed_leaves_all_that_is_reserved_and_is_finished_or_undone(
    small: Small, asked: int
) -> None:
    small.libvirtd.virsh("start", "--paused", "witness")
    was, refused = 256 * MIB, asked * MIB < GUEST
    for step in small.each_kill("pool", "resize", "small", "--size", f"{asked}M", least=4):
        pool = small.pool()
        assert pool["capacity_bytes"] in (was, asked * MIB) and pool["capacity_bytes"] >= pool["reserved_bytes"], (
            step
        )
        if pool["capacity_bytes"] >= 2 * GUEST and "Pool" in step:
            small.serves()
        again = command_killed_before(None, "pool", "resize", "small", "--size", f"{asked}M")
        assert again.status == refused, again.said
        assert small.pool()["capacity_bytes"] == (was if refused else asked * MIB)
        assert small.pool()["state"] == "ready"
        virt_dmem("pool", "resize", "small", "--size", "256M")
        assert small.pool()["capacity_bytes"] == was
    for step in small.each_kill("pool", "resize", "small", "--size", f"{asked}M", least=4):
        virt_dmem("pool", "resize", "small", "--size", "256M")
        assert (small.pool()["capacity_bytes"], small.pool()["state"]) == (was, "ready"), step
    virt_dmem("pool", "resize", "small", "--size", "256M")
    small.serves()
