# SPDX-License-Identifier: GPL-2.0-or-later
"""Test virt-dmem on memory without struct pages, on the booted host: dmemfs, KVM, AppArmor, reboots.

The tests are one story and run in this order.
"""

from __future__ import annotations

import re

import pytest

from tests.lab import guests
from tests.lab.host import LabCommandFailed
from tests.lab.image import PROJECT
from tests.lab.machine import Machine

MACHINE = {"node_gib": (3, 3), "cmdline": "memmap=1G$1G memmap=1G$6G", "name": "dmemfs"}
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
HOLES = [(GIB, GIB), (6 * GIB, GIB)]
WHOLE = {"capacity_bytes": 2 * GIB, "reserved_bytes": 0, "free_bytes": 2 * GIB}


@pytest.fixture(scope="module")
def host(machine: Machine) -> Machine:
    guests.provide_guest(machine)
    return machine


@pytest.fixture(scope="module")
def uuid(host: Machine) -> str:
    return guests.define(host, "two-cells", cells=("256MiB", "128MiB"), boots=True)


def mem_total(host: Machine) -> int:
    return int(host.run("grep MemTotal /proc/meminfo").stdout.split()[1]) * KIB


def stats(host: Machine, *path: str) -> str:
    """Return the module's statistics of the pool ``guests``."""
    number = host.run(
        "awk '$5 == \"/run/virt-dmem/pools/guests\" { print $3 }' /proc/self/mountinfo"
    ).stdout.strip()
    return host.run(f"cat /sys/fs/dmemfs/{number}/{'/'.join(path)}").stdout.strip()


def used(host: Machine, node: int) -> int:
    return int(stats(host, f"node{node}", "total_bytes")) - int(stats(host, f"node{node}", "free_bytes"))


def nodes_of(host: Machine, uuid: str, *aliases: str) -> list[str]:
    """Return the nodes of a domain's extents, as reported by the module."""
    read = f"import os; [print(os.getxattr('/run/virt-dmem/pools/guests/libvirt-{uuid}/' + name, "
    read += f"'system.dmemfs.nodes').decode()) for name in {aliases}]"
    return host.run(["/usr/bin/python3", "-c", read]).stdout.split()


def assert_mapped(host: Machine, size: str) -> None:
    """Verify that all touched memory is mapped by entries of a size, if the kernel supports it."""
    faults = {of: int(stats(host, f"faults_{of}")) for of in ("4k", size)}
    assert (faults["4k"] == 0, faults[size] > 0) == (host.has_huge_entries, host.has_huge_entries), faults


def scrubbed(host: Machine) -> None:
    """Wait until the kernel has zeroed all free memory."""
    host.wait_for("test $(cat /sys/fs/dmemfs/*/dirty_bytes) = 0", timeout=300)


def denied(host: Machine) -> str:
    return host.run("dmesg | grep 'apparmor=\"DENIED\"' | grep -v qemu-ga", check=False).stdout


def test_the_host_was_booted_without_the_memory_and_lost_no_struct_pages_for_it(host: Machine) -> None:
    counted = dict(re.findall(r"(nr_memmap\w*) (\d+)", host.run("cat /proc/vmstat").stdout))
    assert sum(map(int, counted.values())) * 4 * KIB <= 4 * GIB // 64


def test_a_pool_finds_the_memory_that_was_reserved(host: Machine) -> None:
    before = mem_total(host)
    host.run("virt-dmem pool create guests --backend dmemfs --page-size 2M", timeout=300)
    assert guests.pool(host) == WHOLE
    record = host.json("cat /var/lib/virt-dmem/pools/guests.json")
    found = sorted((item["start"], item["size"]) for ranges in record["regions"].values() for item in ranges)
    assert found == HOLES
    assert mem_total(host) == before
    shown = host.json("virt-dmem pool show guests --json")["pool"]
    assert (shown["ready_policy"], shown["ready_most_bytes"]) == ("kernel", 0)
    host.run("systemctl -q enable virt-dmem-pool@guests.service")


def test_the_saving_is_measured(host: Machine) -> None:
    (saving,) = host.json("virt-dmem savings --json")["pools"]
    assert saving["measured"] is ("nr_memmap" in host.run("cat /proc/vmstat").stdout)
    assert (saving["size_bytes"], saving["gross_bytes"]) == (2 * GIB, 32 * MIB)
    assert saving["metadata_left_bytes"] <= 2 * 64 * KIB


def test_nobody_else_is_offered_its_memory(host: Machine) -> None:
    with pytest.raises(LabCommandFailed, match="No memory is available for dmemfs"):
        host.run("virt-dmem pool create second --backend dmemfs")
    start, _ = HOLES[0]
    with pytest.raises(LabCommandFailed, match="was reserved at boot"):
        host.run(f"virt-dmem pool create second --backend dmemfs --region {start:#x}+128M")


def test_check_finds_nothing_wrong(host: Machine) -> None:
    found = guests.complaints(host)
    if not host.has_huge_entries:
        assert "by 4 KiB" in found.pop("dmemfs")
    assert found == {}


def test_what_needs_struct_pages_is_refused_before_a_guest_fails(host: Machine) -> None:
    disk = "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/root/d'/>"
    disk += "<target dev='vda' bus='virtio'/></disk>"
    guests.define(host, "plain", cells=("64MiB", "64MiB"))
    host.write("/root/disk.xml", disk)
    host.run("truncate -s 64M /root/d && virsh -q attach-device plain /root/disk.xml --config")
    with pytest.raises(LabCommandFailed, match="disk vda has cache='none'"):
        host.run("virsh -q start plain --paused")
    assert "domains" in guests.complaints(host)
    host.run("virsh -q detach-device plain /root/disk.xml --config")
    given = "<hostdev mode='subsystem' type='pci' managed='no'><source>"
    given += "<address domain='0' bus='0' slot='4' function='0'/></source></hostdev>"
    host.write("/root/given.xml", given)
    host.run("virsh -q attach-device plain /root/given.xml --config")
    with pytest.raises(LabCommandFailed, match=r"host device 0000:00:04.0 is passed through by VFIO"):
        host.run("virsh -q start plain --paused")
    host.run("virsh -q undefine plain")
    assert guests.pool(host) == WHOLE


def test_each_cell_of_a_kvm_guest_is_on_its_node_in_huge_pages(host: Machine, uuid: str) -> None:
    scrubbed(host)
    host.run("dmesg -C")
    host.run("virsh -q start two-cells", timeout=240)
    guests.boot(host, "two-cells")
    assert (used(host, 0), used(host, 1)) == (256 * MIB, 128 * MIB)
    assert nodes_of(host, uuid, "ram-node0", "ram-node1") == [f"0={256 * MIB}", f"1={128 * MIB}"]
    assert_mapped(host, "2m")
    assert guests.pool(host)["reserved_bytes"] == 384 * MIB


def test_the_guest_is_confined_and_nothing_was_denied(host: Machine, uuid: str) -> None:
    profile = host.run(f"cat /proc/$(pgrep -f -- '[-]uuid {uuid}')/attr/current").stdout
    assert profile.strip("\0\n") == f"libvirt-{uuid} (enforce)"
    assert denied(host) == ""
    extent = f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0"
    assert host.run(f"stat -c '%U %a' {extent}").stdout.split() == ["root", "600"]


def test_a_device_that_cannot_work_there_is_an_alert_when_it_is_attached(host: Machine, uuid: str) -> None:
    """A disk, with which the guest continues; a host device is found in the same XML."""
    disk = "/var/lib/libvirt/images/d"
    host.run(f"mkdir -p /var/lib/libvirt/images && truncate -s 64M {disk}")
    host.run(f"virsh -q attach-disk two-cells {disk} vdb --targetbus virtio --cache none --live")
    host.wait_for("virt-dmem alerts | grep device-on-raw-memory", timeout=30)
    assert "disk vdb has cache='none'" in host.run("virt-dmem alerts").stdout


def test_memory_that_somebody_maps_cannot_be_leased(host: Machine, uuid: str) -> None:
    lease = "import fcntl, os; fd = os.open({!r}, os.O_RDWR); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    extent = f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0"
    done = host.run(["/usr/bin/python3", "-c", lease.format(extent)], check=False)
    assert "Resource temporarily unavailable" in done.stderr
    free = "/run/virt-dmem/pools/guests/free"
    host.run(["/usr/bin/python3", "-c", f"open({free!r}, 'w').close(); {lease.format(free)}; os.unlink({free!r})"])


def test_the_guest_survives_restarts_of_libvirtd_and_the_daemon(host: Machine, uuid: str) -> None:
    guests.lives_on(host, "two-cells", uuid)
    assert guests.pool(host)["reserved_bytes"] == 384 * MIB


def test_what_a_guest_wrote_is_nowhere_in_the_pool_after_it(host: Machine, uuid: str) -> None:
    host.run("virsh -q suspend two-cells")
    guests.write_pattern(host, uuid, "ram-node0", "ram-node1")
    host.run("virsh -q destroy two-cells")
    assert guests.pool(host) == WHOLE
    assert guests.search_pool(host, 2 * GIB) == ["pattern", "False", "clean", "True"]


def test_the_memory_of_a_qemu_that_was_killed_comes_back(host: Machine, uuid: str) -> None:
    host.run("virsh -q start two-cells --paused", timeout=240)
    host.run(f"kill -9 $(pgrep -f -- '[-]uuid {uuid}')")
    host.wait_for("virsh domstate two-cells | grep -q 'shut off'")
    host.wait_for("virt-dmem pool show guests --json | grep -Eq '\"reserved_bytes\": ?0'")
    assert guests.pool(host) == WHOLE
    assert host.run("ls -A /run/virt-dmem/pools/guests").stdout.split() == []


def test_after_a_reboot_an_autostarted_guest_has_its_memory_in_the_pool(host: Machine, uuid: str) -> None:
    host.run("virsh -q autostart two-cells")
    host.reboot()
    host.wait_for("virsh domstate two-cells | grep -q running", timeout=240)
    guests.boot(host, "two-cells")
    assert guests.pool(host)["reserved_bytes"] == 384 * MIB
    assert (used(host, 0), used(host, 1)) == (256 * MIB, 128 * MIB)
    assert denied(host) == ""


def test_the_boot_unit_loads_the_module_and_does_not_build_it_anew(host: Machine, uuid: str) -> None:
    host.run("virsh -q destroy two-cells && virsh -q autostart --disable two-cells")
    host.run("systemctl stop virt-dmem-pool@guests.service; umount /run/virt-dmem/pools/guests && rmmod dmemfs")
    host.run("systemctl start virt-dmem-pool@guests.service", timeout=240)
    assert guests.pool(host) == WHOLE
    assert "dmemfs: built" not in host.run("journalctl -b --no-pager -u virt-dmem-pool@guests.service").stdout


def test_a_pool_can_shrink_and_grow(host: Machine) -> None:
    host.run("virt-dmem pool resize guests --node 0=512M", timeout=240)
    assert guests.pool(host)["capacity_bytes"] == 1536 * MIB
    host.run("virt-dmem pool resize guests --node 0=1G", timeout=240)
    assert guests.pool(host) == WHOLE


def test_pages_of_1_gib(host: Machine) -> None:
    host.run("virt-dmem pool destroy guests", timeout=240)
    host.run("virt-dmem pool create guests --backend dmemfs --page-size 1G", timeout=240)
    guests.define(host, "large", cells=("1GiB", "1GiB"), boots=True)
    host.run("virsh -q start large", timeout=300)
    guests.boot(host, "large")
    assert (used(host, 0), used(host, 1)) == (GIB, GIB)
    assert_mapped(host, "1g")
    host.run("virsh -q destroy large && virsh -q undefine large && virt-dmem pool destroy guests", timeout=240)


def test_booted_with_the_memory_the_host_has_it_but_for_its_struct_pages(host: Machine) -> None:
    """Compare MemTotal of an ordinary host with one with dmemfs; and mount a pool whose memory is missing."""
    host.run("virt-dmem pool create guests --backend dmemfs && systemctl -q enable virt-dmem-pool@guests.service")
    with_dmemfs = mem_total(host)
    host.reboot(cmdline="")
    gained = 2 * GIB - (mem_total(host) - with_dmemfs)
    print(f"2 GiB: struct pages {32 * MIB // KIB} KiB, MemTotal gains {gained // KIB} KiB by dmemfs")
    assert 32 * MIB - 2 * 64 * KIB <= gained <= 32 * MIB + 2 * 64 * KIB
    host.wait_for("systemctl is-active -q multi-user.target")
    said = host.run("virt-dmem pool mount guests", check=False)
    assert (said.status, "0 B of node 0" in said.stderr, "plan-host" in said.stderr) == (5, True, True)
    assert "pools" in guests.complaints(host)
    host.run("virt-dmem pool destroy guests")


def test_plan_host_says_what_this_host_was_booted_with(host: Machine) -> None:
    plan = host.json("virt-dmem plan-host --guest-memory 2G --json")
    (line,) = [option["kernel_command_line"] for option in plan["options"] if option["backend"] == "dmemfs"]
    assert line == "memmap=1G$1G memmap=1G$6G"


def test_uninstall_takes_the_module_away(host: Machine) -> None:
    host.run(f"virt-dmem unapply two-cells && make -C {PROJECT} uninstall", timeout=240)
    assert host.run("find /lib/modules /usr/src -name 'dmemfs*' -o -name 'virt-dmem*'").stdout == ""
    assert host.run("grep -c dmemfs /proc/filesystems", check=False).stdout.strip() == "0"
