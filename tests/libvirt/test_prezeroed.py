# SPDX-License-Identifier: GPL-2.0-or-later
"""Pre-zeroed memory: a start takes it, it contains nothing of another guest, and it never blocks a reservation."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.killed_daemon import killed_before_every_step
from tests.rig.pinner import pinned
from tests.rig.pools import create_pool
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for
from virt_dmem.native.programs import HELPER

pytestmark = pytest.mark.needs_tmpfs  # or huge pages: dmemfs zeroes what is free by itself

MIB = 1 << 20
PATTERN = b"the guest wrote this "
POOLS = Path("/run/virt-dmem/pools")
RECENT = 'ready = "recent"\n'
"""Pre-zero only memory that a domain has returned."""
ALWAYS = "ready_pressure = 100.0\n"
"""Also on a machine that other tests keep busy."""


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    configure(daemon)
    return daemon


def configure(daemon: Daemon, more: str = "") -> None:
    daemon.config = f"[prefault]\n{ALWAYS}{more}"
    daemon.restart()


def slow_helper(daemon: Daemon, directory: Path, condition: str) -> None:
    """Have the helper take its time where the shell finds ``condition`` true; ``$*`` are its arguments."""
    helper = directory / "helper"
    helper.write_text(f'#!/bin/sh\nif {condition}; then sleep 60; fi\nexec {HELPER} "$@"\n')
    helper.chmod(0o755)
    configure(daemon, f'helper = "{helper}"\n')


def pool(name: str) -> dict[str, Any]:
    return dict(virt_dmem_json("pool", "show", name)["pool"])


def define(libvirtd: PrivateLibvirt, name: str, where: str, *, memory: str = "64MiB", **more: Any) -> str:
    uuid = libvirtd.define(domain_xml(name, memory=memory, **more))
    virt_dmem("apply", name, "--pool", where)
    return uuid


def wait_until_ready(name: str, mib: int) -> None:
    wait_for(f"{mib} MiB to be ready", lambda: pool(name)["ready_bytes"] == mib * MIB, timeout=30)


def alerts() -> list[dict[str, Any]]:
    return list(virt_dmem_json("alerts")["alerts"])


def steps(domain: str) -> list[str]:
    return [step["step"] for step in virt_dmem_json("show", domain)["domain"]["steps"]]


def extents(domain: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = virt_dmem_json("show", domain)["domain"]["extents"]
    return found


def inode_of(domain: str) -> int:
    (extent,) = extents(domain)
    return Path(extent["path"]).stat().st_ino


def memory_of(domain: str) -> Iterator[mmap.mmap]:
    """The guest's memory, through the same file that its QEMU maps."""
    for extent in extents(domain):
        with Path(extent["path"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            yield memory


def write_everywhere(domain: str) -> None:
    for memory in memory_of(domain):
        for at in range(0, len(memory), 4096):
            memory[at + 17 : at + 17 + len(PATTERN)] = PATTERN


def is_clean(domain: str) -> bool:
    return all(not any(memory[at : at + MIB].strip(b"\0") for at in range(0, len(memory), MIB))
               for memory in memory_of(domain))  # fmt: skip


@pytest.fixture(params=["tmpfs", pytest.param("hugetlbfs", marks=pytest.mark.needs_hugepages)])
def some_pool(request: pytest.FixtureRequest) -> str:
    """A pool of 256 MiB of tmpfs, or of 128 MiB in huge pages."""
    return str(request.getfixturevalue({"tmpfs": "tmpfs_pool", "hugetlbfs": "hugetlbfs_pool"}[request.param]))


def test_memory_is_pre_zeroed_before_the_first_start_which_populates_nothing(
    libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon
) -> None:
    uuid = define(libvirtd, "known", some_pool)
    wait_until_ready(some_pool, 64)
    shown = pool(some_pool)
    assert (shown["reserved_bytes"], shown["free_bytes"]) == (0, shown["capacity_bytes"])
    assert "64 MiB" in virt_dmem("pool", "show", some_pool)
    (file,) = (POOLS / some_pool / ".ready").iterdir()
    inode = file.stat().st_ino

    libvirtd.virsh("start", "--paused", "known")
    (extent,) = extents("known")
    assert Path(extent["path"]) == POOLS / some_pool / f"libvirt-{uuid}" / "pc.ram"
    found = Path(extent["path"]).stat()
    assert (found.st_ino, found.st_blocks * 512) == (inode, 64 * MIB)
    assert steps("known") == [
        "prepare: hook", "prepare: plan and ledger", "take pre-zeroed memory", "prepare",
        "start: hook", "start: link", "start", "started: hook", "started: verify", "started",
    ]  # fmt: skip
    shown = pool(some_pool)
    assert (shown["reserved_bytes"], shown["ready_bytes"]) == (64 * MIB, 0)
    assert is_clean("known")


def test_what_a_guest_wrote_is_not_in_what_the_next_one_gets(
    libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon
) -> None:
    configure(daemon, RECENT)
    define(libvirtd, "first", some_pool)
    define(libvirtd, "second", some_pool)
    libvirtd.virsh("start", "--paused", "first")
    write_everywhere("first")
    assert not is_clean("first")
    was = inode_of("first")
    libvirtd.virsh("destroy", "first")
    libvirtd.virsh("undefine", "first")
    wait_until_ready(some_pool, 64)
    (made,) = (POOLS / some_pool / ".ready").iterdir()
    inode = made.stat().st_ino
    assert inode != was, "memory of a guest was returned to the kernel"
    assert PATTERN not in made.read_bytes()
    libvirtd.virsh("start", "--paused", "second")
    assert inode_of("second") == inode
    assert is_clean("second")


def test_a_guest_that_starts_before_its_old_memory_is_clean_sees_nothing_of_it(
    libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon, tmp_path: Path
) -> None:
    """The background helper never finishes here."""
    define(libvirtd, "again", some_pool)
    wait_until_ready(some_pool, 64)
    slow_helper(daemon, tmp_path, '[ "${*#*--background}" != "$*" ]')
    libvirtd.virsh("start", "--paused", "again")
    write_everywhere("again")
    libvirtd.virsh("destroy", "again")
    assert pool(some_pool)["ready_bytes"] == 0
    began = time.monotonic()
    libvirtd.virsh("start", "--paused", "again")
    assert time.monotonic() - began < 50, "it waited for background work"
    assert is_clean("again")


@pytest.mark.needs_hugepages
def test_memory_that_a_killed_qemu_leaves_pinned_is_an_alert_and_missing_in_no_other_guest(
    libvirtd: PrivateLibvirt, hugetlbfs_pool: str, daemon: Daemon
) -> None:
    whole = pool(hugetlbfs_pool)["capacity_bytes"]
    define(libvirtd, "killed", hugetlbfs_pool, memory=f"{whole // MIB}MiB")
    define(libvirtd, "next", hugetlbfs_pool)
    libvirtd.virsh("start", "--paused", "killed")
    write_everywhere("killed")
    (extent,) = extents("killed")
    with pinned(Path(extent["path"]), [0, 8 * MIB]):
        os.kill(libvirtd.qemu_pids()["killed"], signal.SIGKILL)
        wait_for("its release", lambda: pool(hugetlbfs_pool)["reserved_bytes"] == 0)
        wait_for("memory that is not pinned", lambda: pool(hugetlbfs_pool)["free_bytes"] == whole - 4 * MIB)
        wait_for("the alert", lambda: "memory-pinned" in [one["code"] for one in alerts()], timeout=30)
        assert "4 MiB" in alerts()[0]["message"]
        libvirtd.virsh("start", "--paused", "next")
        assert is_clean("next")
    wait_for("all of it", lambda: pool(hugetlbfs_pool)["free_bytes"] == whole - 64 * MIB, timeout=30)
    wait_for("the end of the alert", lambda: alerts() == [], timeout=30)


def test_pre_zeroed_memory_yields_to_reservations(libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon) -> None:
    define(libvirtd, "waits", some_pool)
    wait_until_ready(some_pool, 64)
    whole = pool(some_pool)["capacity_bytes"]
    define(libvirtd, "large", some_pool, memory=f"{whole // MIB}MiB")
    libvirtd.virsh("start", "--paused", "large")
    shown = pool(some_pool)
    assert (shown["reserved_bytes"], shown["ready_bytes"], shown["free_bytes"]) == (whole, 0, 0)
    assert is_clean("large")
    libvirtd.virsh("destroy", "large")
    # the domain that ran last is the likeliest to run again; there is no room for the other one beside it
    wait_until_ready(some_pool, whole // MIB)
    libvirtd.virsh("start", "--paused", "waits")
    assert not any(step.startswith("prefault") for step in steps("waits")), "a larger file was truncated"
    assert pool(some_pool)["reserved_bytes"] == 64 * MIB


def test_a_smaller_pre_zeroed_file_is_extended(libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon) -> None:
    configure(daemon, RECENT)
    define(libvirtd, "smaller", some_pool)
    libvirtd.virsh("start", "--paused", "smaller")
    write_everywhere("smaller")
    libvirtd.virsh("destroy", "smaller")
    wait_until_ready(some_pool, 64)
    (made,) = (POOLS / some_pool / ".ready").iterdir()
    inode = made.stat().st_ino
    define(libvirtd, "larger", some_pool, memory="96MiB")
    libvirtd.virsh("start", "--paused", "larger")
    assert inode_of("larger") == inode
    assert Path(extents("larger")[0]["path"]).stat().st_blocks * 512 == 96 * MIB
    assert is_clean("larger")


def test_a_guest_takes_over_what_is_half_done_and_waits_for_nothing(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, daemon: Daemon, tmp_path: Path
) -> None:
    slow_helper(daemon, tmp_path, '[ "${*#*--background}" != "$*" ]')
    define(libvirtd, "impatient", tmpfs_pool)
    wait_for("the background helper", lambda: list((POOLS / tmpfs_pool / ".ready").glob("*")))
    began = time.monotonic()
    libvirtd.virsh("start", "--paused", "impatient")
    assert time.monotonic() - began < 50
    assert is_clean("impatient")
    (extent,) = extents("impatient")
    assert Path(extent["path"]).stat().st_blocks * 512 == 64 * MIB


def test_policy_and_bound_are_kept_to(libvirtd: PrivateLibvirt, tmpfs_pool: str, daemon: Daemon) -> None:
    define(libvirtd, "one", tmpfs_pool)
    define(libvirtd, "two", tmpfs_pool)
    wait_until_ready(tmpfs_pool, 128)
    configure(daemon, 'ready = "off"\n')
    wait_until_ready(tmpfs_pool, 0)
    assert pool(tmpfs_pool)["ready_policy"] == "off"
    configure(daemon, "ready_percent = 40\n")  # of 256 MiB: room for one of them
    wait_until_ready(tmpfs_pool, 64)
    assert pool(tmpfs_pool)["ready_policy"] == "all"
    assert pool(tmpfs_pool)["ready_most_bytes"] == 256 * MIB * 40 // 100
    time.sleep(1.5)
    assert pool(tmpfs_pool)["ready_bytes"] == 64 * MIB
    configure(daemon, 'ready = "off"\n')
    wait_until_ready(tmpfs_pool, 0)
    configure(daemon, RECENT)
    time.sleep(1.5)
    assert pool(tmpfs_pool)["ready_bytes"] == 0, "neither has run"
    libvirtd.virsh("start", "--paused", "two")
    libvirtd.virsh("destroy", "two")
    wait_until_ready(tmpfs_pool, 64)
    assert "two" not in virt_dmem_fails("show", "one", status=1)


def test_pre_zeroed_memory_outlives_the_daemon(libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon) -> None:
    define(libvirtd, "known", some_pool)
    wait_until_ready(some_pool, 64)
    (file,) = (POOLS / some_pool / ".ready").iterdir()
    inode = file.stat().st_ino
    daemon.kill()
    daemon.start()
    assert pool(some_pool)["ready_bytes"] == 64 * MIB, "it is found, not zeroed again"
    libvirtd.virsh("start", "--paused", "known")
    assert inode_of("known") == inode


@pytest.mark.parametrize("listens", [True, False])
def test_a_pool_with_pre_zeroed_memory_is_shrunk_and_destroyed_as_any_other(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, daemon: Daemon, *, listens: bool
) -> None:
    define(libvirtd, "one", tmpfs_pool)
    define(libvirtd, "two", tmpfs_pool)
    wait_until_ready(tmpfs_pool, 128)
    if not listens:
        daemon.stop()
    virt_dmem("pool", "resize", tmpfs_pool, "--size", "80M")
    if not listens:
        daemon.start()
    assert pool(tmpfs_pool)["capacity_bytes"] == 80 * MIB
    wait_for("what fits to be ready", lambda: 64 * MIB <= pool(tmpfs_pool)["ready_bytes"] <= 80 * MIB)
    virt_dmem("pool", "drain", tmpfs_pool)
    wait_until_ready(tmpfs_pool, 0)
    virt_dmem("pool", "drain", tmpfs_pool, "--undo")
    wait_until_ready(tmpfs_pool, 64)
    virt_dmem("pool", "destroy", tmpfs_pool)
    create_pool(tmpfs_pool)


def test_a_daemon_killed_between_any_two_steps_of_a_release_leaves_nothing_of_a_guest(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, daemon: Daemon, tmp_path: Path
) -> None:
    define(libvirtd, "crash", tmpfs_pool)
    mark = tmp_path / "mark"

    def operate() -> None:
        libvirtd.virsh("destroy", "crash")
        wait_for("zeroes, or the kill", lambda: mark.exists() or pool(tmpfs_pool)["ready_bytes"] == 64 * MIB)

    def restore() -> None:
        start_and_write()

    def start_and_write() -> None:
        wait_until_ready(tmpfs_pool, 64)
        libvirtd.virsh("start", "--paused", "crash")
        assert is_clean("crash")
        write_everywhere("crash")

    start_and_write()
    also = ("subprocess.Popen", "os.rename", "os.truncate")
    steps = killed_before_every_step(
        daemon, mark, operate, restore, last="a chunk is done", also=also, background=True
    )
    assert any("Popen" in step for step in steps), steps
    assert any("os.rename" in step for step in steps), steps


def test_a_daemon_killed_between_any_two_steps_of_pre_zeroing_continues_where_it_was(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, daemon: Daemon, tmp_path: Path
) -> None:
    libvirtd.define(domain_xml("crash", memory="64MiB"))
    mark = tmp_path / "mark"

    def operate() -> None:
        virt_dmem("apply", "crash", "--pool", tmpfs_pool)
        wait_for("memory, or the kill", lambda: mark.exists() or pool(tmpfs_pool)["ready_bytes"] == 64 * MIB)

    def restore() -> None:
        wait_until_ready(tmpfs_pool, 64)
        (file,) = (POOLS / tmpfs_pool / ".ready").iterdir()
        assert file.stat().st_blocks * 512 == 64 * MIB
        virt_dmem("unapply", "crash")
        virt_dmem("pool", "drain", tmpfs_pool)
        wait_until_ready(tmpfs_pool, 0)
        virt_dmem("pool", "drain", tmpfs_pool, "--undo")

    also = ("subprocess.Popen", "os.truncate")
    steps = killed_before_every_step(
        daemon, mark, operate, restore, last="a chunk is done", also=also, background=True
    )
    assert any("Popen" in step for step in steps), steps
    assert any("os.truncate" in step for step in steps), steps


def test_a_host_under_pressure_gets_its_pre_zeroed_memory_back(
    libvirtd: PrivateLibvirt, some_pool: str, daemon: Daemon
) -> None:
    """A negative limit is always exceeded. The host cannot use huge pages of a pool, so they stay."""
    define(libvirtd, "one", some_pool)
    wait_until_ready(some_pool, 64)
    daemon.config = "[prefault]\nready_pressure = -1.0\n"
    daemon.restart()
    if pool(some_pool)["backend"] == "tmpfs":
        wait_until_ready(some_pool, 0)
    define(libvirtd, "two", some_pool)
    time.sleep(2.5)
    assert pool(some_pool)["ready_bytes"] == (0 if pool(some_pool)["backend"] == "tmpfs" else 64 * MIB)
    libvirtd.virsh("start", "--paused", "two")
    assert is_clean("two")
