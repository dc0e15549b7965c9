# SPDX-License-Identifier: GPL-2.0-or-later
"""Park guests, unpark them and refresh their QEMU: their memory stays, and is given to nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import CONFIG, Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, guest_image
from tests.rig.killed_daemon import left_in
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError, wait_for

MIB = 1 << 20

SCRIPT = """
head -c 24M /dev/urandom >/tmp/pattern
(while :; do echo "md5: $(md5sum </tmp/pattern | cut -d' ' -f1) at $(cut -d' ' -f1 /proc/uptime)"; sleep 1; done) &
"""


@pytest.fixture(scope="session")
def patterned(rig: None) -> GuestImage:
    """Build the guest that has a pattern in its memory, and prints its sum each second."""
    return guest_image(SCRIPT)


def held() -> dict[str, tuple[str, int]]:
    """Return phase and MiB of each domain with memory."""
    return {row["name"]: (row["phase"], row["reserved_bytes"] // MIB) for row in virt_dmem_json("list")["domains"]}


def sums(libvirtd: PrivateLibvirt, name: str = "guest") -> list[tuple[str, float]]:
    found = re.findall(r"md5: ([0-9a-f]{32}) at (\d+\.\d+)", libvirtd.console(name))
    return [(md5, float(uptime)) for md5, uptime in found]


def start(
    libvirtd: PrivateLibvirt, pool: str, image: GuestImage | None, *args: str, name: str = "guest", **more: Any
) -> str:
    uuid = libvirtd.define(domain_xml(name, image=image, **{"memory": "160MiB"} | more))
    virt_dmem("apply", name, "--pool", pool, *args)
    libvirtd.virsh("start", name)
    if image is not None:
        wait_for("the guest", lambda: sums(libvirtd, name), timeout=120)
    return uuid


def goes_on(libvirtd: PrivateLibvirt, before: Sequence[tuple[str, float]], name: str = "guest") -> None:
    """Verify that the guest did not reboot, and that its memory is the same."""
    md5, uptime = before[-1]
    seen = len(sums(libvirtd, name))
    wait_for("the guest to go on", lambda: len(sums(libvirtd, name)) > seen + 1)
    now, later = sums(libvirtd, name)[-1]
    assert now == md5
    assert uptime < later < uptime + 600


def has_capability(libvirtd: PrivateLibvirt, name: str = "guest") -> bool:
    said = libvirtd.virsh("qemu-monitor-command", name, '{"execute": "query-migrate-capabilities"}')
    return '"capability":"x-ignore-shared"' in said and '{"state":true,"capability":"x-ignore-shared"}' in said


def test_a_guest_goes_on_with_its_memory_in_a_new_qemu(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, patterned: GuestImage
) -> None:
    start(libvirtd, tmpfs_pool, patterned)
    before, old = sums(libvirtd), libvirtd.qemu_pids()["guest"]
    assert virt_dmem_json("refresh", "--dry-run", "guest")["domains"][0]["state"] == "possible"
    (change,) = virt_dmem_json("refresh", "guest")["domains"]
    assert change["state"] == "running"
    print("refreshed in", change["pause_seconds"])
    assert libvirtd.qemu_pids()["guest"] != old
    goes_on(libvirtd, before)
    assert not has_capability(libvirtd)
    assert held() == {"guest": ("running", 160)}
    assert list(Path("/var/lib/virt-dmem/parked").iterdir()) == []
    assert "xmlns/restore" not in libvirtd.virsh("dumpxml", "guest")
    libvirtd.virsh("save", "guest", "/var/lib/libvirt/whole.save")  # as any guest: with its memory
    assert Path("/var/lib/libvirt/whole.save").stat().st_size > 24 * MIB
    assert held() == {}
    libvirtd.virsh("restore", "/var/lib/libvirt/whole.save")
    goes_on(libvirtd, before)


# Guests that the firmware finds nothing to boot for: they have no use for the end of their memory

PATTERN = b"this was here before " * 1000


def write_pattern(pool: str, uuid: str) -> None:
    """Write into the guest's memory, at its end."""
    for path in Path(f"/run/virt-dmem/pools/{pool}/libvirt-{uuid}").iterdir():
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(PATTERN)


def has_pattern(pool: str, uuid: str) -> bool:
    paths = list(Path(f"/run/virt-dmem/pools/{pool}/libvirt-{uuid}").iterdir())
    return bool(paths) and all(PATTERN in path.read_bytes() for path in paths)


def state_files() -> list[str]:
    return [path.name for path in Path("/var/lib/virt-dmem/parked").glob("*")]


def fails(*args: str) -> str:
    """Return what a command says that fails."""
    with pytest.raises(RigError) as failure:
        virt_dmem(*args)
    return str(failure.value)


def test_a_parked_guest_is_kept_whatever_is_done_around_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, None)
    write_pattern(tmpfs_pool, uuid)
    libvirtd.virsh("suspend", "guest")
    (change,) = virt_dmem_json("park", "guest")["domains"]
    assert (change["state"], change["name"]) == ("parked", "guest")
    state = Path(change["state_file"])
    assert state.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_size < 32 * MIB
    assert libvirtd.state("guest") == "shut off"
    assert held() == {"guest": ("parked", 160)}
    assert str(state) in virt_dmem("list", "-o", "NAME,PHASE,STATE-FILE")
    assert str(state) in virt_dmem("show", "guest")
    for attempt in (("start", "guest"), ("restore", state), ("start", "--paused", "guest")):
        with pytest.raises(RigError, match=r"is parked: its memory is kept.*virt-dmem unpark"):
            libvirtd.virsh(*attempt)
    assert "is parked" in fails("park", "guest")
    assert "is parked" in fails("refresh", "guest")
    assert "Domains hold" in fails("pool", "destroy", tmpfs_pool)
    libvirtd.define(domain_xml("other", memory="160MiB"))
    virt_dmem("apply", "other", "--pool", tmpfs_pool)
    with pytest.raises(RigError, match="free"):
        libvirtd.virsh("start", "other")
    virt_dmem("pool", "drain", tmpfs_pool)
    virt_dmem("reconcile")
    daemon.kill()
    libvirtd.kill()
    libvirtd.start()
    daemon.start()
    virt_dmem("reconcile")
    libvirtd.virsh("undefine", "guest")
    assert held() == {"guest": ("parked", 160)}
    (change,) = virt_dmem_json("unpark", "--all")["domains"]
    assert change["state"] == "paused"
    assert libvirtd.state("guest") == "paused"
    assert held() == {"guest": ("running", 160)}
    assert has_pattern(tmpfs_pool, uuid)
    assert not has_capability(libvirtd)
    assert state_files() == []
    libvirtd.virsh("destroy", "guest")
    assert held() == {}
    assert left_in(tmpfs_pool) == []


def test_a_parked_guest_can_be_given_up(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    start(libvirtd, tmpfs_pool, None)
    virt_dmem("park", "guest")
    assert "is given up" in virt_dmem("unpark", "--discard", "guest")
    assert (held(), left_in(tmpfs_pool), state_files()) == ({}, [], [])
    libvirtd.virsh("start", "guest")
    assert "is not parked" in fails("unpark", "guest")
    assert "Give either DOMAIN or --all" in fails("refresh")


def test_a_parked_guest_is_kept_when_the_ledger_is_lost(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, None)
    write_pattern(tmpfs_pool, uuid)
    virt_dmem("park", "guest")
    daemon.stop()
    for file in Path("/var/lib/virt-dmem").glob("ledger.sqlite*"):
        file.write_bytes(b"no database " * 100)
    daemon.start()
    virt_dmem("reconcile")
    assert held() == {"guest": ("parked", 160)}
    virt_dmem("unpark", "guest")
    assert has_pattern(tmpfs_pool, uuid)


def test_a_capability_that_was_left_on_is_switched_off_when_the_monitor_is_connected(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    start(libvirtd, tmpfs_pool, None)
    daemon.stop()
    on = '{"capabilities": [{"capability": "x-ignore-shared", "state": true}]}'
    command = f'{{"execute": "migrate-set-capabilities", "arguments": {on}}}'
    libvirtd.virsh("qemu-monitor-command", "guest", command)
    assert has_capability(libvirtd)
    daemon.start()
    wait_for("the capability to be switched off", lambda: not has_capability(libvirtd))


def test_a_qemu_that_was_not_told_refuses_the_state_of_a_parked_guest(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, None)
    write_pattern(tmpfs_pool, uuid)
    (change,) = virt_dmem_json("park", "guest")["domains"]
    libvirtd.remove_hook()  # so that libvirt restores it on memory of its own
    try:
        with pytest.raises(RigError):
            libvirtd.virsh("restore", change["state_file"])
    finally:
        libvirtd.install_hook(HOOK)
    assert "received capability is on" in Path("/var/log/libvirt/qemu/guest.log").read_text()
    virt_dmem("unpark", "guest")
    assert has_pattern(tmpfs_pool, uuid)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"args": ("--no-monitor",)}, "without QEMU's second monitor"),
        (
            {"devices": "<interface type='user'><model type='virtio'/></interface>", "late": "virtio-mem"},
            "virtio-mem",
        ),
    ],
)
def test_a_guest_that_would_be_lost_is_refused_and_runs_on(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, how: dict[str, Any], said: str
) -> None:
    late = how.pop("late", "")
    more = ("--hotplug-max", "1G") if late else ()
    start(libvirtd, roomy_pool, None, *how.pop("args", more), **how)
    if late:
        virt_dmem("attach", "guest", "--size", "128M", "--type", late)
    for command in ("park", "refresh"):
        assert said in fails(command, "guest")
    assert libvirtd.state("guest") == "running"
    assert held()["guest"][0] == "running"


def test_a_guest_with_two_cells_and_a_dimm_goes_on_with_all_of_them(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(
        libvirtd, tmpfs_pool, None, "--hotplug-max", "1G", cells=("64MiB", "96MiB"), max_memory="1GiB", slots=4
    )
    virt_dmem("attach", "guest", "--size", "32M")
    write_pattern(tmpfs_pool, uuid)
    virt_dmem("refresh", "guest")
    assert held() == {"guest": ("running", 192)}
    assert has_pattern(tmpfs_pool, uuid)
    extents = virt_dmem_json("show", "guest")["domain"]["extents"]
    assert {extent["state"] for extent in extents} == {"ready"}
    assert len(extents) == 3


@pytest.mark.needs_hugepages
def test_a_guest_on_huge_pages_goes_on(libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str) -> None:
    uuid = start(libvirtd, hugetlbfs_pool, None, memory="64MiB")
    (path,) = Path(f"/run/virt-dmem/pools/{hugetlbfs_pool}/libvirt-{uuid}").iterdir()
    inode = path.stat().st_ino
    virt_dmem("refresh", "guest")
    assert held() == {"guest": ("running", 64)}
    assert path.stat().st_ino == inode
    assert not has_capability(libvirtd)


VIRT_DMEM = str(Path(sys.executable).with_name("virt-dmem"))
VICTIMS = {"virt-dmemd": "", "QEMU": "/run/libvirt/qemu/guest.pid", "libvirtd": "/run/libvirt/libvirtd.pid"}
STEPS = {
    "park": (
        "before switching on",
        "after switching on",
        "before libvirt's save",
        "after libvirt's save",
        "answer to",
    ),
    "unpark": (
        *("before libvirt's restore", "answer to prepare", "answer to start", "before switching on"),
        *("after switching on", "answer to started", "after libvirt's restore", "before switching off"),
        *("after switching off", "before libvirt's resume", "after libvirt's resume", "answer to unpark"),
    ),
}
"""All that is done with QEMU and libvirt, and the hook's answers."""
LOST = {
    "park": {"before switching on", "after switching on", "before libvirt's save"},
    "unpark": {"after switching off", "before libvirt's resume", "after libvirt's resume", "answer to unpark"},
}
"""The steps at which a guest whose QEMU is killed is lost, like any: before it is saved, and when it may run. That
QEMU is dead is noticed after the step, so the last one before counts too."""


@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_is_killed_at_whatever_step_the_guest_comes_back_or_runs_on(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path, victim: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, None)
    write_pattern(tmpfs_pool, uuid)
    mark = tmp_path / "mark"
    if VICTIMS[victim]:
        mark.with_name("mark.victim").write_text(VICTIMS[victim])
    daemon.program.command = [sys.executable, "-m", "tests.rig.killing", str(mark), "--config", str(CONFIG)]
    daemon.restart()

    def is_settled() -> bool:
        """Whether it is parked, runs or is gone, for libvirt as for virt-dmemd."""
        with suppress(RigError):  # libvirt may not be back yet
            virt_dmem("reconcile")
        row = next(iter(virt_dmem_json("list")["domains"]), {"phase": "gone", "state_file": ""})
        phase = row["phase"]
        active = libvirtd.state("guest") in ("running", "paused")
        return (phase, active) in {("parked", False), ("running", True), ("gone", False)} and (
            bool(row["state_file"]) == (phase == "parked")
        )

    for operation, steps in STEPS.items():
        for step in steps:
            if operation == "unpark":
                virt_dmem("park", "guest")
            mark.unlink(missing_ok=True)
            mark.with_name("mark.at").write_text(f"answer to {operation}" if step == "answer to" else step)
            command = [VIRT_DMEM, operation, "guest"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            assert mark.exists(), f"{operation} has no step {step}: {done.stderr}"
            if victim == "libvirtd":
                wait_for("libvirtd to be dead", lambda: not libvirtd.libvirtd.running)
                libvirtd.start()
            daemon.restart()
            wait_for(f"what became of it after {step!r} of {operation}", is_settled)
            phase = held().get("guest", ("gone", 0))[0]
            print(f"{operation}: {victim} killed {step}: {phase}; {done.stderr.strip()}")
            if phase == "gone":
                assert victim == "QEMU"
                assert step in LOST[operation]
                assert left_in(tmpfs_pool) == []
                libvirtd.virsh("start", "guest")
                write_pattern(tmpfs_pool, uuid)
            if phase == "parked":
                virt_dmem("unpark", "guest")
            assert has_pattern(tmpfs_pool, uuid)
            assert libvirtd.state("guest") == "running"
            assert not has_capability(libvirtd)
            assert state_files() == []
