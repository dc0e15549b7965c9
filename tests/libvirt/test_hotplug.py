# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach, resize and detach memory of running guests; the guest's own console reports its size."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.rig.command import reserved, virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.grower import MIB, extents, has_mib, links, start, wait_for_memory
from tests.rig.guest import GuestImage
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for
from tests.rig.stall import StallWatch

_VERSION = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False).stdout
QEMU_UNPLUGS_VIRTIO_MEM = [int(part) for part in re.findall(r"version (\d+)\.(\d+)", _VERSION)[0]] >= [8, 2]


def test_a_dimm_is_attached_to_a_guest_and_detached(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    change = virt_dmem_json("attach", "grower", "--size", "256M")["change"]
    assert change["state"] == "attached"
    alias = change["alias"]
    wait_for_memory(libvirtd, before + 240, before + 260)
    assert reserved(roomy_pool) == 448 * MIB
    extent = extents()[alias]
    assert extent["state"] == "ready"
    assert Path(extent["path"]).stat().st_uid == 0
    assert Path(extent["path"]).stat().st_blocks * 512 == 256 * MIB
    assert links() == []
    assert virt_dmem_json("alerts")["alerts"] == []
    change = virt_dmem_json("detach", "grower", alias)["change"]
    assert change["state"] == "detached", change
    assert reserved(roomy_pool) == 192 * MIB
    assert not Path(extent["path"]).exists()
    wait_for_memory(libvirtd, before - 10, before + 10)
    assert "<memory " not in libvirtd.virsh("dumpxml", "grower").partition("<devices>")[2]


@pytest.mark.alone
def test_qemu_answers_within_100_ms_while_memory_is_attached(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str
) -> None:
    """Take the best of three, without the time others had the CPU: stalls of QEMU would appear each time."""
    monitor = Path("/var/lib/libvirt/qemu/asked.qmp")
    qmp = ["-qmp", f"unix:{monitor},server=on,wait=off"]
    libvirtd.define(domain_xml("grower", cells=["64MiB"], max_memory="2GiB", qemu_args=qmp))
    virt_dmem("apply", "grower", "--pool", roomy_pool)
    libvirtd.virsh("start", "--paused", "grower")
    watch = StallWatch(monitor, libvirtd.qemu_pids()["grower"])
    stalls = []
    with watch.running():
        for _ in range(3):
            watch.longest = 0.0
            virt_dmem("attach", "grower", "--size", "256M")
            stalls.append(watch.longest)
    print(stalls)
    assert min(stalls) < 0.1


def test_a_guest_plugs_and_unplugs_virtio_mem(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    change = virt_dmem_json("attach", "grower", "--size", "512M", "--type", "virtio-mem")["change"]
    assert change["state"] == "attached", change
    alias = change["alias"]
    wait_for_memory(libvirtd, before + 480, before + 520)
    path = Path(extents()[alias]["path"])
    assert path.stat().st_blocks * 512 == 512 * MIB, "all of it is present: the guest faults on nothing"
    assert reserved(roomy_pool) == 704 * MIB
    change = virt_dmem_json("resize", "grower", alias, "--size", "128M")["change"]
    assert (change["state"], change["size_bytes"]) == ("resized", 128 * MIB), change
    assert reserved(roomy_pool) == 320 * MIB
    wait_for_memory(libvirtd, before + 100, before + 140)
    # and others may use it now: then it cannot grow again
    libvirtd.define(domain_xml("other", memory="512MiB"))
    virt_dmem("apply", "other", "--pool", roomy_pool)
    libvirtd.virsh("start", "--paused", "other")
    assert "would be reserved" in virt_dmem_fails("resize", "grower", alias, "--size", "512M", status=5)
    assert reserved(roomy_pool) == 832 * MIB
    libvirtd.remove("other")
    change = virt_dmem_json("resize", "grower", alias, "--size", "512M")["change"]
    assert change["state"] == "resized"
    assert reserved(roomy_pool) == 704 * MIB
    wait_for_memory(libvirtd, before + 480, before + 520)
    change = virt_dmem_json("resize", "grower", alias, "--size", "0")["change"]
    assert change["state"] == "resized"
    assert reserved(roomy_pool) == 192 * MIB
    if not QEMU_UNPLUGS_VIRTIO_MEM:
        assert "cannot be unplugged" in virt_dmem_fails("detach", "grower", alias, status=1)
        assert extents()[alias]["state"] == "ready"
    else:
        assert virt_dmem_json("detach", "grower", alias)["change"]["state"] == "detached"
    assert reserved(roomy_pool) == 192 * MIB


def test_a_detach_without_an_answer_is_pending_and_freed_when_unplugged_also_by_another_daemon(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    alias = virt_dmem_json("attach", "grower", "--size", "128M")["change"]["alias"]
    libvirtd.virsh("suspend", "grower")
    change = virt_dmem_json("detach", "grower", alias, "--wait", "1s")["change"]
    assert change["state"] == "pending"
    assert "128 MiB stay charged" in change["message"]
    assert extents()[alias]["state"] == "detaching"
    assert reserved(roomy_pool) == 320 * MIB
    daemon.restart()
    assert reserved(roomy_pool) == 320 * MIB
    libvirtd.virsh("resume", "grower")
    wait_for("libvirt's event to be acted on", lambda: reserved(roomy_pool) == 192 * MIB)
    second = virt_dmem_json("attach", "grower", "--size", "128M")["change"]["alias"]
    libvirtd.virsh("suspend", "grower")
    assert virt_dmem_json("detach", "grower", second, "--wait", "1s")["change"]["state"] == "pending"
    daemon.stop()
    libvirtd.virsh("resume", "grower")
    wait_for("the guest to unplug it", lambda: second not in libvirtd.virsh("dumpxml", "grower"))
    daemon.start()
    wait_for("libvirt to be asked", lambda: reserved(roomy_pool) == 192 * MIB)


def test_a_guest_that_refuses_keeps_its_memory_and_is_reported(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image, hotplugged="online_kernel")
    before = has_mib(libvirtd)
    alias = virt_dmem_json("attach", "grower", "--size", "128M")["change"]["alias"]
    wait_for_memory(libvirtd, before + 110, before + 130)
    time.sleep(1)
    change = virt_dmem_json("detach", "grower", alias, "--wait", "120s")["change"]
    assert change["state"] == "pending"
    assert "The guest refused" in change["message"]
    assert reserved(roomy_pool) == 320 * MIB
    assert has_mib(libvirtd) >= before + 110


def test_a_dimm_that_is_persistent_is_there_at_the_next_start_and_detached_from_both(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    alias = virt_dmem_json("attach", "grower", "--size", "128M", "--persistent")["change"]["alias"]
    libvirtd.virsh("destroy", "grower")
    assert reserved(roomy_pool) == 0
    libvirtd.virsh("start", "grower")
    assert {name: extent["size_bytes"] // MIB for name, extent in extents().items()} == {
        "ram-node0": 192,
        alias: 128,
    }
    wait_for("the guest", lambda: "cmdline:" in libvirtd.console("grower"), timeout=60)
    wait_for_memory(libvirtd, before + 110, before + 130)
    second = virt_dmem_json("attach", "grower", "--size", "128M")["change"]["alias"]
    assert second != alias
    assert virt_dmem_json("detach", "grower", alias)["change"]["state"] == "detached"
    assert f"'{alias}'" not in libvirtd.virsh("dumpxml", "grower")
    assert alias not in libvirtd.virsh("dumpxml", "--inactive", "grower")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["attach", "grower", "--size", "1G"], 5, "832 MiB is free"),
        (["attach", "grower", "--size", "4G"], 1, "may have 2 GiB at most"),
        (["attach", "grower", "--size", "64M", "--cell", "3"], 1, "no guest NUMA cell 3"),
        (["attach", "nobody", "--size", "64M"], 1, "has no domain"),
        (["detach", "grower", "ram-node0"], 1, "no memory device 'ram-node0'"),
        (["resize", "grower", "dimm7", "--size", "64M"], 1, "no memory device 'dimm7'"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, args: list[str], status: int, said: str
) -> None:
    start(libvirtd, roomy_pool, None)
    assert said in virt_dmem_fails(*args, status=status)
    assert reserved(roomy_pool) == 192 * MIB


def test_virtio_mem_is_refused_where_memory_has_no_struct_pages(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str
) -> None:
    start(libvirtd, roomy_pool, None)
    daemon.program.command[daemon.program.command.index("virt_dmem.daemon.main")] = "tests.rig.no_struct_pages"
    daemon.restart()
    said = virt_dmem_fails("attach", "grower", "--size", "64M", "--type", "virtio-mem", status=1)
    assert "no struct pages" in said
    assert "virtio-mem" in said
    assert reserved(roomy_pool) == 192 * MIB
    assert list(extents()) == ["ram-node0"]
    assert virt_dmem_json("attach", "grower", "--size", "64M")["change"]["state"] == "attached"


def test_a_domain_that_was_not_prepared_is_refused_with_what_is_missing(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str
) -> None:
    uuid = libvirtd.define(domain_xml("grower"))
    virt_dmem("apply", "grower", "--pool", roomy_pool)
    libvirtd.virsh("start", "--paused", "grower")
    said = virt_dmem_fails("attach", "grower", "--size", "64M", status=1)
    assert "no <maxMemory> with slots" in said
    assert f"apply {uuid} --hotplug-max SIZE" in said


def test_a_resize_that_was_pending_is_settled_when_the_guest_has_done_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    attached = virt_dmem_json("attach", "grower", "--size", "256M", "--type", "virtio-mem")["change"]
    assert attached["state"] == "attached"
    alias = attached["alias"]
    libvirtd.virsh("suspend", "grower")
    change = virt_dmem_json("resize", "grower", alias, "--size", "64M", "--wait", "1s")["change"]
    assert change["state"] == "pending"
    assert reserved(roomy_pool) == 448 * MIB
    assert extents()[alias]["state"] == "resizing"
    daemon.restart()
    libvirtd.virsh("resume", "grower")
    wait_for("the rest to be freed", lambda: reserved(roomy_pool) == 256 * MIB)
    assert extents()[alias]["state"] == "ready"
