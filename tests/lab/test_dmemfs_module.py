# SPDX-License-Identifier: GPL-2.0-or-later
"""Test the dmemfs module on a stock kernel: mounting, files, and KVM guests on it.

The test programs are in kernel/tests. The tests are one story and run in this order.
"""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.lab import guests, module_build
from tests.lab.host import LabCommandFailed
from tests.lab.machine import Machine
from tests.rig.domains import domain_xml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.image import Image

MACHINE = {"node_gib": (3, 3), "name": "dmemfs", "cmdline": "memmap=1G$0x40000000 memmap=2G$0x140000000"}
"""On -M pc, node 0 is the first 3 GiB of addresses and node 1 is 4 to 7 GiB."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NODE0, NODE1 = "0x40000000", "0x140000000"
SIZES = ["4K", "2M", "1G"]
POOLS = {
    "4K": f"region={NODE0}+32M:region={NODE1}+32M,pagesize=4K",
    "2M": f"region={NODE0}+128M:region={NODE1}+256M,pagesize=2M",
    "1G": f"region={NODE0}+1G:region={NODE1}+2G,pagesize=1G",
}
CHECKS = (
    "names sizes fallocate statfs nodes entries private splits protect access reader gup walkers leases exhaustion "
    "held pieces zeroes threads storm"
)
BAD = r"BUG|WARNING:|Oops|[Bb]ad (page|p[um]d|rss)|lockdep|possible (circular|recursive)|blocked for more than"
PRODUCT = "nosuid,nodev,noexec,mode=0711,uid=0,gid=0"
BACKING = "/run/dmemfs-guests"
KEPT = {size: f"region={NODE0}+128M:region={NODE1}+128M,pagesize={size},persist=" for size in ("4K", "2M")}
HEADERS = (0x47FFF000, 0x147FFF000)
"""Addresses of the headers of these regions (kernel/table.h)."""
TABLE = HEADERS[1] - 56 * KIB
TOKENS = [f"{number:032x}" for number in range(0xA11CE, 0xA11CE + 9)]
MODULE = "/root/dmemfs.ko"


@dataclass
class Host:
    """The machine with the module built and loaded."""

    machine: Machine
    said: str
    """The output of the build."""

    def mount(self, options: str, where: str = "/mnt", *, name: str = "pool") -> None:
        self.machine.run(f"mkdir -p {where} && mount -t dmemfs -o {options} {name} {where}")

    def unmount(self, where: str = "/mnt") -> None:
        # udev and others may have a new mount open for a moment
        self.machine.wait_for(f"umount {where}", timeout=20)

    def refused(self, options: str) -> str:
        """Return the reason of a rejected mount; mount(8) of Debian 12 shows it only in the kernel log."""
        lines = len(self.log().splitlines())
        with pytest.raises(LabCommandFailed) as failed:
            self.mount(options)
        if self.machine.image.suite == "bookworm":
            return "\n".join(self.log().splitlines()[lines:])
        return failed.value.done.stderr

    def check(self, names: str, where: str = "/mnt", *, timeout: float = 300) -> str:
        done = self.machine.run(f"dmemtest {where} {names}", timeout=timeout, check=False)
        assert done.status == 0, done.stdout + done.stderr
        return done.stdout

    def keep(self, names: str) -> None:
        done = self.machine.run(f"keeptest {names} /mnt 5", timeout=300, check=False)
        assert done.status == 0, done.stdout + done.stderr

    def count(self, name: str, where: str = "/mnt") -> int:
        device = self.machine.run(f"mountpoint -d {where}").stdout.strip()
        return int(self.machine.run(f"cat /sys/fs/dmemfs/{device}/{name}").stdout)

    def hold(self, where: str = "/mnt") -> None:
        self.machine.run(
            f"rm -f /tmp/held; setsid dmemtest {where} hold >/tmp/held 2>&1 </dev/null & echo $! >/tmp/holder"
        )
        self.machine.wait_for("grep -q holding /tmp/held")

    def let_go(self) -> None:
        self.machine.run("kill -9 $(cat /tmp/holder); while [ -e /proc/$(cat /tmp/holder) ]; do sleep 0.1; done")

    def log(self) -> str:
        return self.machine.run("dmesg | sed -n '/dmemfs/,$p'").stdout


@pytest.fixture(scope="module")
def host(lab_image: Image, machine: Machine) -> Host:
    built = module_build.build(lab_image)
    programs = (("dmemtest", built.program), ("kvmtest", built.kvm_program), ("keeptest", built.keep_program))
    # no depmod: it would unpack each of the kernel's modules, which takes minutes here
    machine.run(f"xz -dc >{MODULE}", stdin=lzma.compress(built.module))
    for name, program in programs:
        machine.run(f"xz -dc >/usr/bin/{name} && chmod 755 /usr/bin/{name}", stdin=lzma.compress(program))
    machine.run(f"insmod {MODULE} && sysctl -qw kernel.hung_task_timeout_secs=60")
    return Host(machine, built.said)


@pytest.fixture(autouse=True)
def _nothing_stays_mounted(host: Host) -> Iterator[None]:
    yield
    host.machine.run(
        "pkill -9 dmemtest; for there in $(findmnt -nrt dmemfs -o TARGET); do umount -l $there; done", check=False
    )


@pytest.fixture
def huge(host: Host) -> bool:
    return host.machine.has_huge_entries


@pytest.fixture(params=SIZES)
def mounted(request: pytest.FixtureRequest, host: Host) -> str:
    """Mount a pool on both nodes on /mnt; return its page size."""
    host.mount(POOLS[request.param])
    request.addfinalizer(host.unmount)
    return str(request.param)


def test_it_builds_without_a_warning(host: Host) -> None:
    assert not re.search("(warning|error):", host.said, re.IGNORECASE), host.said


def test_a_region_must_be_memory_that_nobody_else_has(host: Host) -> None:
    assert "System RAM" in host.refused("region=0x20000000+128M,pagesize=2M")
    assert "System RAM" in host.refused(f"region={NODE0}+2G,pagesize=2M")
    assert "not all RAM in the firmware's map" in host.refused("region=0xe0000000+128M,pagesize=2M")
    assert "not all RAM in the firmware's map" in host.refused("region=512G+1G,pagesize=1G")
    assert 'is "Reserved"' in host.refused("region=0xf8000000+128M,pagesize=2M")  # the BIOS at its end
    assert "not aligned to the page size" in host.refused(f"region={NODE0}+3M,pagesize=2M")
    assert "not aligned to the page size" in host.refused("region=0x40200000+1G,pagesize=1G")
    assert "CPU can address" in host.refused("region=0xfffffffff0000000+256M,pagesize=2M")
    assert "is missing" in host.refused("pagesize=2M")
    assert "BASE+SIZE" in host.refused(f"region={NODE0},pagesize=2M")
    assert "none of 4K, 2M and 1G" in host.refused(f"region={NODE0}+1G,pagesize=3M")
    assert "compat=ext4 is not known" in host.refused(f"region={NODE0}+1G,compat=ext4")
    # the kernel log has the reason too, and a warning about lost memory
    assert "is the kernel's own memory (System RAM)" in host.log()
    host.mount("region=0x40000000+120M,pagesize=2M")
    host.unmount()
    assert "an end is no multiple of 128 MiB" in host.log()


def test_a_mount_is_found_by_its_device_and_says_what_it_is(host: Host) -> None:
    host.mount(f"{POOLS['2M']},{PRODUCT}")
    device = host.machine.run("mountpoint -d /mnt").stdout.strip()
    line = host.machine.run("grep ' /mnt ' /proc/self/mountinfo").stdout
    assert f" {device} / /mnt rw,nosuid,nodev,noexec" in line
    options = "region=0x40000000+0x8000000:region=0x140000000+0x10000000,pagesize=2M,mode=711"
    assert line.strip().endswith(f"- dmemfs pool rw,{options}")
    assert host.machine.run("stat -c %a:%u:%g /mnt").stdout.strip() == "711:0:0"
    assert host.machine.run(f"cat /sys/fs/dmemfs/{device}/regions").stdout.splitlines() == [
        "0x40000000+0x8000000 node0",
        "0x140000000+0x10000000 node1",
    ]
    assert host.count("page_size") == 2 * MIB
    assert [host.count(f"node{node}/total_bytes") for node in (0, 1)] == [128 * MIB, 256 * MIB]
    assert host.count("total_bytes") == host.count("free_bytes") == 384 * MIB
    # the memory is the boot's; it is zeroed in the background
    host.machine.wait_for(f"grep -qx 0 /sys/fs/dmemfs/{device}/dirty_bytes")
    assert host.count("clean_bytes") == 384 * MIB
    host.machine.run("mount -o remount,ro /mnt && ! touch /mnt/f && mount -o remount,rw /mnt && touch /mnt/f")
    host.unmount()


def test_two_mounts_with_other_page_sizes_share_nothing(host: Host) -> None:
    host.mount(POOLS["2M"])
    host.mount("region=0x180000000+1G,pagesize=1G", "/mnt2", name="giant")
    assert "in use already, by another mount" in host.refused(f"region={NODE0}+128M,pagesize=4K")
    assert "in use already" in host.refused("region=0x180000000+1G,pagesize=2M")
    assert (host.count("page_size"), host.count("page_size", "/mnt2")) == (2 * MIB, GIB)
    host.check("sizes names")
    host.unmount("/mnt2")
    host.unmount()
    # a rejected mount claimed nothing
    assert "dmemfs" not in host.machine.run("cat /proc/iomem").stdout


def test_statfs_answers_as_hugetlbfs_if_asked_to(host: Host) -> None:
    for options, magic in (("", "0x2ace90c6"), (",compat=hugetlbfs", "0x958458f6")):
        host.mount(POOLS["2M"] + options)
        assert f"type {magic}" in host.check("statfs")
        host.unmount()


def test_files_do_what_files_do(host: Host, mounted: str) -> None:
    """Each word is a check of one of kernel/tests/*.c."""
    # fewer pages than the others need where a page is 1 GiB: three
    host.check(CHECKS, timeout=600)


def test_kvm_runs_a_guest_on_it_and_logs_its_dirty_pages(host: Host, mounted: str) -> None:
    assert "ok kvm" in host.machine.run("kvmtest /mnt").stdout


def test_memory_follows_the_policy_of_mapping_and_task(host: Host) -> None:
    host.mount(POOLS["2M"])
    host.check("policy heldpolicy")
    host.unmount()


def test_where_a_mount_is_read_only_nobody_writes_by_any_way(host: Host, mounted: str) -> None:
    host.check("secret")
    host.machine.run("mkdir -p /mnt-ro && mount --bind /mnt /mnt-ro && mount -o remount,bind,ro /mnt-ro")
    try:
        host.check("readonly", "/mnt-ro")
    finally:
        host.unmount("/mnt-ro")


def test_the_memory_is_write_back_for_all_who_map_it(host: Host) -> None:
    """User mappings get what this list says (track_pfn_insert() in arch/x86/mm/pat/memtype.c)."""
    host.mount(POOLS["2M"])
    host.hold()
    listed = host.machine.run("cat /sys/kernel/debug/x86/pat_memtype_list").stdout
    host.let_go()
    for start, size in ((0x40000000, 128 * MIB), (0x140000000, 256 * MIB)):
        line = next(line for line in listed.splitlines() if f"{start:016x}-" in line)
        assert "write-back" in line
        assert f"{start + size:016x}" in line or f"{start + size - 1:016x}" in line
    host.unmount()


def test_what_is_in_use_cannot_be_taken_away(host: Host) -> None:
    host.mount(POOLS["2M"])
    host.hold()
    assert "busy" in host.machine.run("umount /mnt", check=False).stderr
    assert "in use" in host.machine.run("rmmod dmemfs", check=False).stderr
    # a lazily unmounted one remains in use, and ends with its last user
    host.machine.run("umount -l /mnt && truncate -s 0 /tmp/held")
    host.machine.wait_for("grep -q holding /tmp/held")
    assert "in use" in host.machine.run("rmmod dmemfs", check=False).stderr
    host.let_go()
    host.machine.wait_for("rmmod dmemfs", timeout=20)
    assert "dmemfs" not in host.machine.run("cat /proc/iomem /proc/filesystems").stdout
    host.machine.run(f"insmod {MODULE}")
    host.mount(POOLS["2M"])
    host.unmount()


def test_memory_outlives_whoever_wrote_it_and_is_freed_with_its_file(host: Host) -> None:
    host.mount(POOLS["2M"])
    free = host.count("free_bytes")
    host.hold()
    host.let_go()
    assert free - host.count("free_bytes") == 2 * MIB
    assert host.machine.run("stat -c %b /mnt/held").stdout.strip() == str(2 * MIB // 512)
    host.hold()
    host.machine.run("rm /mnt/held")
    assert free - host.count("free_bytes") == 2 * MIB
    host.let_go()
    assert host.count("free_bytes") == free
    host.unmount()


def test_entries_are_huge_whatever_is_set_for_processes_or_the_log_says_why_not(host: Host, huge: bool) -> None:
    host.mount(POOLS["2M"])
    setting = "/sys/kernel/mm/transparent_hugepage/enabled"
    made = {}
    for word in ("never", "madvise", "always"):
        before = host.count("faults_2m")
        host.machine.run(f"echo {word} >{setting}")
        host.hold()
        host.let_go()
        made[word] = host.count("faults_2m") - before
    print(f"entries of 2M by the word in {setting}: {made}")
    assert made["madvise"] == made["always"] == int(huge)
    # not all kernels apply this one: 6.12.117 does not
    assert made["never"] == int(huge) or "transparent_hugepage/enabled" in host.log()
    host.unmount()


def test_mounting_and_unmounting_while_it_is_scrubbed_loses_nothing(host: Host) -> None:
    line = f"mount -t dmemfs -o {POOLS['1G']} pool /mnt && umount /mnt"
    host.machine.run(f"for i in 1 2 3 4 5; do {line} || exit 1; done")
    host.machine.run(
        f"mount -t dmemfs -o {POOLS['2M']} pool /mnt; "
        "(while cat /sys/fs/dmemfs/*/* /sys/fs/dmemfs/*/*/*; do :; done) >/dev/null 2>&1 & reader=$!; "
        f"for i in 1 2 3 4 5; do umount /mnt; mount -t dmemfs -o {POOLS['2M']} pool /mnt; done; "
        "kill $reader; umount /mnt"
    )


@pytest.mark.parametrize("size", KEPT)
def test_files_outlive_their_mount_and_the_module(host: Host, size: str) -> None:
    host.mount(f"{KEPT[size]}new:{TOKENS[0]}")
    assert ",persist=on" in host.machine.run("grep ' /mnt ' /proc/mounts").stdout
    for names in ("fill", "clean", "verify"):
        host.keep(names)
    host.unmount()
    host.machine.run(f"rmmod dmemfs && insmod {MODULE}")
    host.mount(f"{KEPT[size]}{TOKENS[0]}:{TOKENS[1]}")
    host.machine.run("mount -o remount,ro /mnt && mount -o remount,rw /mnt")
    # what was free was not believed to be zero, and is before anybody has it; what is a file's is not zeroed
    host.machine.wait_for("cat /sys/fs/dmemfs/*/dirty_bytes | grep -qx 0")
    for names in ("verify", "clean", "verify"):
        host.keep(names)
    # what is removed remains so
    host.machine.run("rm -r /mnt/libvirt-guest /mnt/link")
    host.unmount()
    host.mount(f"{KEPT[size]}{TOKENS[1]}:{TOKENS[2]}")
    assert "libvirt-guest" not in host.machine.run("ls /mnt").stdout
    host.keep("clean")
    host.unmount()


def test_only_what_was_left_for_this_mount_is_found(host: Host) -> None:
    options = KEPT["2M"]
    host.mount(f"{options}new:{TOKENS[0]}")
    host.keep("fill")
    host.unmount()
    assert "left for another token" in host.refused(f"{options}{TOKENS[3]}:{TOKENS[4]}")
    assert "pages of another size" in host.refused(f"{KEPT['4K']}{TOKENS[0]}:{TOKENS[1]}")
    one = f"region={NODE1}+128M,pagesize=2M,persist={TOKENS[0]}:{TOKENS[1]}"
    assert "in other regions" in host.refused(one)
    assert "one token twice" in host.refused(f"{options}{TOKENS[0]}:{TOKENS[0]}")
    assert "each token of 32 hexadecimal digits" in host.refused(f"{options}{TOKENS[0]}")
    # none of that has changed anything; a token is good once
    host.mount(f"{options}{TOKENS[0]}:{TOKENS[1]}")
    host.keep("verify")
    host.unmount()
    assert "left for another token" in host.refused(f"{options}{TOKENS[0]}:{TOKENS[2]}")
    # a mount without the option ends it, also of one region
    host.mount(f"region={NODE0}+128M,pagesize=2M")
    host.unmount()
    assert "no mount with persist= has left files" in host.refused(f"{options}{TOKENS[1]}:{TOKENS[2]}")
    host.mount(f"{options}new:{TOKENS[5]}")
    assert host.machine.run("ls -A /mnt").stdout == ""
    host.keep("clean")
    host.unmount()


def test_a_changed_table_is_refused_and_not_changed_further(host: Host) -> None:
    options = KEPT["2M"]
    host.mount(f"{options}new:{TOKENS[0]}")
    host.keep("fill")
    host.unmount()
    for header in HEADERS:
        for at in (header, header + 16, header + 24, header + 40, header + 56, TABLE, TABLE + 44):
            host.machine.run(f"keeptest flip {at:#x}")
            said = host.refused(f"{options}{TOKENS[0]}:{TOKENS[1]}")
            assert "is not mounted with persist=" in said, said
            host.machine.run(f"keeptest flip {at:#x}")
    host.mount(f"{options}{TOKENS[0]}:{TOKENS[1]}")
    # not keep("verify"): once it found another amount of held pages here, which is not understood yet
    assert host.machine.run("ls /mnt/libvirt-guest").stdout.split() == ["pc.ram", "ram-node1"]
    host.unmount()


def test_files_that_do_not_fit_into_the_table_are_not_left(host: Host) -> None:
    options = KEPT["2M"]
    host.mount(f"{options}new:{TOKENS[0]}")
    host.machine.run("for i in $(seq 700); do : >/mnt/$i; done")
    host.unmount()
    assert "their table needs more than 0xe000 bytes" in host.log()
    assert "no mount with persist= has left files" in host.refused(f"{options}{TOKENS[0]}:{TOKENS[1]}")


def test_mounts_that_come_while_others_go_never_meet_the_name_of_one(host: Host) -> None:
    """A device number is free before its mount is quite gone, and is the name in /sys/fs/dmemfs."""
    each = "mount -t dmemfs -o region=$1+128M,pagesize=2M pool $2 && until umount $2; do sleep 0.1; done"
    done = host.machine.run(
        f"again() {{ mkdir -p $2; for i in $(seq 40); do {each} || echo no $i; done; }}; "
        f"again {NODE0} /mnt/a & again {NODE1} /mnt/b & again 0x148000000 /mnt/c & wait; true",
        timeout=300,
    )
    assert done.stdout == ""
    assert "cannot create duplicate filename" not in host.log()
    assert host.machine.run("ls /sys/fs/dmemfs").stdout == ""


@pytest.mark.parametrize(("size", "memory"), [("2M", "256MiB"), ("1G", "2GiB")])
def test_a_kvm_guest_of_plain_libvirt_has_nested_entries_of_the_pools_size(
    host: Host, size: str, memory: str, huge: bool
) -> None:
    machine = host.machine
    guests.provide_guest(machine)
    region = {"2M": f"region={NODE1}+512M", "1G": f"region={NODE1}+2G"}[size]
    host.mount(f"{region},pagesize={size},compat=hugetlbfs,mode=0755", BACKING)
    conf = "/etc/libvirt/qemu.conf"
    machine.run(f"sed -i '/^memory_backing_dir/d' {conf} && echo 'memory_backing_dir = \"{BACKING}\"' >>{conf}")
    machine.run("systemctl restart libvirtd", timeout=300)
    name = f"nested-{size}"
    xml = domain_xml(
        name,
        memory=memory,
        image=guests.IMAGE,
        memory_backing="<source type='file'/><access mode='shared'/>",
        kind="kvm",
        cmdline=guests.CMDLINE,
    ).replace("<on_reboot>destroy", "<on_reboot>restart")  # for guests.boot()
    before = host.count("faults_4k", BACKING)
    machine.run("cat >/tmp/nested.xml && virsh -q create /tmp/nested.xml", stdin=xml, timeout=300)
    guests.boot(machine, name)
    nested = {
        name: int(machine.run(f"cat /sys/kernel/debug/kvm/pages_{name}").stdout) for name in ("4k", "2m", "1g")
    }
    print(f"nested entries of a guest with {memory} in pages of {size}: {nested}")
    if huge:
        assert nested["2m" if size == "2M" else "1g"] >= 1
        assert host.count("faults_4k", BACKING) == before
    machine.run(f"virsh -q destroy {name}")
    machine.wait_for(f"! ls {BACKING}/libvirt/qemu/*{name}* 2>/dev/null")
    assert host.count("free_bytes", BACKING) == host.count("total_bytes", BACKING)
    host.unmount(BACKING)


def test_what_is_clean_costs_nothing_by_the_byte(host: Host) -> None:
    """Printed for information; only what cannot be noise is asserted: clean memory is allocated at once."""
    rows = []
    for size, region in (("2M", f"region={NODE1}+512M"), ("1G", f"region={NODE1}+2G")):
        host.mount(f"{region},pagesize={size}")
        rows += host.check("cost").splitlines()
        host.unmount()
    host.machine.run("sysctl -qw vm.nr_hugepages=256 && mount -t hugetlbfs -o size=512M none /mnt")
    rows += host.check("other-cost").splitlines()
    host.machine.run("umount /mnt && sysctl -qw vm.nr_hugepages=0")
    print("\n".join(rows))
    for row in rows:
        if " clean " in row:
            taken = re.search(r"fallocate=([0-9.]+)", row)
            assert taken is not None
            assert float(taken[1]) < 0.05


def test_the_kernel_has_complained_of_nothing(host: Host) -> None:
    host.machine.run("rmmod dmemfs")
    complaints = [line for line in host.log().splitlines() if re.search(BAD, line)]
    assert complaints == []
