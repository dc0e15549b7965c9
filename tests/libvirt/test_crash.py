# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill the daemon between any two steps, or let steps fail: nothing leaks, no guest is harmed.

The steps are not sampled: the daemon is killed before its first step, before its second, and so on, to the last one
of an operation. ``tests/rig/killing.py`` defines a step.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.rig.command import ask, reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.killed_daemon import killed_before_every_step, left_in
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for

MIB = 1 << 20


def require_clean(pool: str) -> None:
    """Verify that nothing is reserved and no file is left, at the latest soon after the daemon reached libvirt."""
    wait_for("everything to be freed", lambda: reserved(pool) == 0 and not left_in(pool))


def require_in_order(libvirtd: PrivateLibvirt, pool: str, name: str) -> None:
    """Verify that a running guest has all its memory and is charged; and that any other has none."""
    if libvirtd.state(name) == "shut off":
        require_clean(pool)
        return
    shown = ask("ShowDomain", domain=name)["domain"]
    assert shown["reserved_bytes"] == reserved(pool) == 96 * MIB
    maps = Path(f"/proc/{libvirtd.qemu_pids()[name]}/maps").read_text()
    for extent in shown["extents"]:
        assert f" {Path(extent['path']).stat().st_ino} " in maps


def test_a_daemon_killed_between_any_two_steps_of_a_start_leaks_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    libvirtd.define(domain_xml("crash", cells=["64MiB", "32MiB"]))
    virt_dmem("apply", "crash", "--pool", tmpfs_pool)

    def operate() -> None:
        libvirtd.virsh("start", "--paused", "crash", check=False)

    def restore() -> None:
        require_in_order(libvirtd, tmpfs_pool, "crash")
        libvirtd.virsh("destroy", "crash", check=False)
        require_clean(tmpfs_pool)

    steps = killed_before_every_step(
        daemon, tmp_path / "mark", operate, restore, last="answer to started", also=["os.symlink"]
    )
    print(f"{len(steps)} steps: {steps}")
    assert len(steps) >= 25
    assert any("symlink" in step for step in steps)
    assert "answer to started" in steps


def test_a_daemon_killed_between_any_two_steps_of_a_stop_leaks_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    libvirtd.define(domain_xml("crash", cells=["64MiB", "32MiB"]))
    virt_dmem("apply", "crash", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "crash")

    def operate() -> None:
        libvirtd.virsh("destroy", "crash")

    def restore() -> None:
        require_clean(tmpfs_pool)
        libvirtd.virsh("start", "--paused", "crash")
        require_in_order(libvirtd, tmpfs_pool, "crash")

    steps = killed_before_every_step(daemon, tmp_path / "mark", operate, restore, last="answer to release")
    print(f"{len(steps)} steps: {steps}")
    assert len(steps) >= 8
    assert steps[-1] == "answer to release"


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_guest_whose_ledger_was_lost_is_found_and_charged_again(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, how: str
) -> None:
    libvirtd.define(domain_xml("foundling", cells=["64MiB", "32MiB"]))
    virt_dmem("apply", "foundling", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "foundling")
    before = virt_dmem_json("show", "foundling")["domain"]["extents"]
    daemon.kill()
    ledger = Path("/var/lib/virt-dmem/ledger.sqlite")
    for file in ledger.parent.glob("ledger.sqlite*") if how == "lost" else ():
        file.unlink()
    if how == "damaged":
        with closing(sqlite3.connect(ledger)) as database, database:
            database.execute("UPDATE reservation SET phase = 'runninh'")
    daemon.start()
    shown = virt_dmem_json("show", "foundling")["domain"]
    assert shown["phase"] == "running"
    assert shown["extents"] == before
    assert reserved(tmpfs_pool) == 96 * MIB
    codes = [alert["code"] for alert in virt_dmem_json("alerts")["alerts"]]
    assert codes == (["ledger-damaged"] if how == "damaged" else [])
    libvirtd.virsh("destroy", "foundling")
    require_clean(tmpfs_pool)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    stranger = Path("/run/virt-dmem/pools", tmpfs_pool, "libvirt-00000000-0000-0000-0000-000000000000", "pc.ram")
    stranger.parent.mkdir()
    stranger.touch()
    (action,) = virt_dmem_json("reconcile", "--dry-run")["actions"]
    assert str(stranger) in action
    assert stranger.exists()
    assert virt_dmem_json("reconcile")["actions"] == [action]
    assert not stranger.exists()
    assert virt_dmem_json("reconcile")["actions"] == []


def test_a_link_that_leads_to_nothing_is_removed(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    directory = Path("/var/lib/libvirt/qemu/ram/77-gone")
    directory.mkdir(parents=True)
    dangling, elsewhere = directory / "pc.ram", directory / "ram-node0"
    dangling.symlink_to(f"/run/virt-dmem/pools/{tmpfs_pool}/libvirt-gone/pc.ram")
    elsewhere.symlink_to("/nowhere")
    assert any(str(dangling) in action for action in virt_dmem_json("reconcile")["actions"])
    assert not dangling.is_symlink()
    assert elsewhere.is_symlink(), "not ours"
    elsewhere.unlink()
    directory.rmdir()


def test_a_helper_that_is_killed_fails_the_start_and_leaves_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    daemon.restart_with_helper(tmp_path, "kill -9 $$")
    libvirtd.define(domain_xml("unlucky"))
    virt_dmem("apply", "unlucky", "--pool", tmpfs_pool)
    with pytest.raises(RigError, match="SIGKILL"):
        libvirtd.virsh("start", "--paused", "unlucky")
    assert reserved(tmpfs_pool) == 0
    assert left_in(tmpfs_pool) == []


def test_memory_that_is_not_there_after_all_fails_the_start_and_leaves_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    """Fill the pool by another process: reserved memory cannot be populated."""
    with Path("/run/virt-dmem/pools", tmpfs_pool, "thief").open("wb") as thief:
        os.posix_fallocate(thief.fileno(), 0, 224 * MIB)
    libvirtd.define(domain_xml("robbed"))
    virt_dmem("apply", "robbed", "--pool", tmpfs_pool)
    try:
        with pytest.raises(RigError, match="out of memory in the pool"):
            libvirtd.virsh("start", "--paused", "robbed")
        assert reserved(tmpfs_pool) == 0
        assert left_in(tmpfs_pool) == []
    finally:
        Path("/run/virt-dmem/pools", tmpfs_pool, "thief").unlink()


def test_a_qemu_that_refuses_gives_everything_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("refused", qemu_args=["-no-such-option"]))
    virt_dmem("apply", "refused", "--pool", tmpfs_pool)
    with pytest.raises(RigError, match="no-such-option"):
        libvirtd.virsh("start", "--paused", "refused")
    assert reserved(tmpfs_pool) == 0
    assert left_in(tmpfs_pool) == []


def test_a_full_disk_under_the_ledger_refuses_starts_and_harms_no_guest(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    for name in ("first", "second"):
        libvirtd.define(domain_xml(name))
        virt_dmem("apply", name, "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "first")
    filler = Path("/var/lib/virt-dmem/filler")
    with filler.open("wb") as file:
        free = os.statvfs("/var/lib/virt-dmem")
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    try:
        with pytest.raises(RigError, match="ledger"):
            libvirtd.virsh("start", "--paused", "second")
        assert libvirtd.state("first") == "paused"
        libvirtd.virsh("destroy", "first")
    finally:
        filler.unlink()
    virt_dmem("reconcile")
    require_clean(tmpfs_pool)
    libvirtd.virsh("start", "--paused", "second")
    assert reserved(tmpfs_pool) == 64 * MIB
