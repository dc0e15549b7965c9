# SPDX-License-Identifier: GPL-2.0-or-later
"""Use the product on a whole Debian 13 host of arm64 with the kernel, libvirt and QEMU of its backports.

QEMU emulates all of it: the host has KVM at EL2, and its guests run under it. Not part of ``make test``; ``make
lab-arm64`` runs it. Its root is made with arm64's own programs, emulated, so ``make install`` runs there as it
would on such a machine, and takes its time. The tests are one story and run in this order.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import guests
from tests.lab.architecture import ARM64
from tests.lab.image import PROJECT, Image, NoPackages, the_image
from tests.lab.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINE = {"node_gib": (3, 2), "name": "arm64"}
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
GUESTS = GIB
WITHHELD = GUESTS + 512 * MIB
"""With the slack for what the kernel adds back on a host with UEFI (docs/guide/aarch64.md)."""
NODE = 1
"""The node whose memory ``mem=`` takes: the last."""
SIZE = 256 * MIB
TOUCH = "dd if=/dev/zero of=/tmp/touched bs=1M count=128 2>/dev/null && echo touched\n"
TRACING = "/sys/kernel/tracing"
SECOND = f"""
cd {PROJECT}
export VIRT_DMEM_TEST_KVM=1 VIRT_DMEM_TEST_PATIENCE=30
rm -f /tmp/second.in; mkfifo /tmp/second.in
nohup .venv/bin/python -m tests.rig.second_host yes "" virt_dmem.daemon.main \\
    <>/tmp/second.in >/tmp/second.out 2>/tmp/second.err &
echo $!
"""
"""A host of its own beside the first, as libvirt sees it: tests/rig/second_host.py."""


@pytest.fixture(scope="session")
def lab_image() -> Image:
    """Provide the image of arm64 in place of the lab's."""
    try:
        return the_image("trixie-backports", ARM64)
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def host(machine: Machine) -> Machine:
    guests.provide_own_kernel(machine, machine.image.root, TOUCH)
    return machine


@pytest.fixture(scope="module")
def seen(host: Machine) -> dict[str, Any]:
    """What a test of the story leaves to a later one."""
    return {}


def counters(host: Machine) -> dict[str, int]:
    """Return in bytes MemTotal, and the struct pages of all kinds."""
    total = int(host.run("grep MemTotal /proc/meminfo").stdout.split()[1]) * KIB
    pages = re.findall(r"nr_memmap\w* (\d+)", host.run("cat /proc/vmstat").stdout)
    return {"total": total, "struct_pages": sum(map(int, pages)) * 4 * KIB}


def define(host: Machine, name: str) -> str:
    return guests.define(host, name, cells=(f"{SIZE // MIB}MiB",), boots=True, first_node=NODE, arch="aarch64")


def start(host: Machine, name: str) -> None:
    """Start a guest, wait until it has booted and touched half of its memory, and say how long it took."""
    began = time.monotonic()
    host.run(f"virsh -q start {name}", timeout=300)
    started = time.monotonic()
    guests.boot(host, name, seconds=400)
    host.wait_for(f"grep -q touched {guests.log_of(name)}", timeout=200)
    print(f"{name}: virsh start {started - began:.0f} s, until it is up {time.monotonic() - began:.0f} s")


def goes_on(host: Machine, name: str) -> None:
    """Verify that a guest prints, and has not booted again."""
    lines = len(guests.console(host, name).splitlines())
    host.wait_for(f"test $(wc -l <{guests.log_of(name)}) -gt {lines}", timeout=200)


def mapped(host: Machine, uuid: str) -> list[str]:
    """Return the lines of its QEMU's memory map that are of a pool."""
    pid = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout.split()[0]
    return host.run(f"grep /run/virt-dmem/pools/guests/libvirt-{uuid}/ /proc/{pid}/maps").stdout.splitlines()


def test_the_host_has_kvm_at_el2_and_what_dmemfs_needs_of_a_cpu(host: Machine) -> None:
    print(f"booted in {host.boot_seconds[0]:.0f} s: {host.run('uname -rm').stdout}")
    log = host.run("dmesg").stdout
    assert "kvm" in log.lower()
    assert host.run("test -c /dev/kvm", check=False).status == 0
    assert "Stage-2 Force Write-Back" in log
    print(host.run("virsh version --daemon; virt-dmem --version").stdout)


def test_plan_host_recommends_dmemfs_and_says_that_there_is_no_hvo(host: Machine, seen: dict[str, Any]) -> None:
    said = host.run(f"virt-dmem plan-host --guest-memory {GUESTS}", timeout=300)
    print(said.stdout + said.stderr)
    plan = host.json(f"virt-dmem plan-host --guest-memory {GUESTS} --json", timeout=300)
    (dmemfs,) = [option for option in plan["options"] if option["backend"] == "dmemfs"]
    assert dmemfs["recommended"]
    assert "HVO" in said.stdout
    total = sum(host.node_gib) * GIB
    assert dmemfs["kernel_command_line"] == f"mem={(total - WITHHELD) // MIB}M"
    seen["cmdline"] = dmemfs["kernel_command_line"]
    seen["all"] = counters(host)


def test_pools_of_huge_pages_in_each_size_that_the_kernel_has(host: Machine) -> None:
    for size, pages in (("64K", 64 * KIB), ("32M", 32 * MIB)):
        host.run(f"virt-dmem pool create guests --page-size {size} --node {NODE}=64M", timeout=300)
        pool = host.json("virt-dmem pool show guests --json")["pool"]
        assert (pool["page_size"], pool["capacity_bytes"]) == (pages, 64 * MIB)
        host.run("virt-dmem pool destroy guests", timeout=300)


def test_a_kvm_guest_on_huge_pages(host: Machine) -> None:
    host.run(f"virt-dmem pool create guests --page-size 2M --node {NODE}={SIZE}", timeout=300)
    uuid = define(host, "huge")
    start(host, "huge")
    assert guests.memory_of(host, uuid) == {"ram-node0": (2 * MIB, {NODE})}
    assert guests.pool(host)["free_bytes"] == 0
    host.run("virsh -q destroy huge && virsh -q undefine huge && virt-dmem pool destroy guests", timeout=300)


def test_booted_with_mem_the_host_gains_the_struct_pages(host: Machine, seen: dict[str, Any]) -> None:
    host.reboot(cmdline=seen["cmdline"])
    print(f"booted with {host.cmdline} in {host.boot_seconds[-1]:.0f} s")
    less, whole = counters(host), seen["all"]
    gained = WITHHELD - (whole["total"] - less["total"])
    print(f"MemTotal {whole['total'] // KIB} KiB with all memory, {less['total'] // KIB} KiB with {host.cmdline}")
    print(f"struct pages {whole['struct_pages'] // KIB} KiB and {less['struct_pages'] // KIB} KiB")
    print(f"{WITHHELD // MIB} MiB withheld: MemTotal gains {gained // KIB} KiB of {WITHHELD // 64 // KIB} KiB")
    assert whole["struct_pages"] - less["struct_pages"] == pytest.approx(WITHHELD // 64, abs=128 * KIB)
    assert -128 * KIB <= gained - WITHHELD // 64 <= 4 * MIB  # smaller tables, too: 3 MiB


def test_a_pool_takes_all_that_was_withheld(host: Machine, seen: dict[str, Any]) -> None:
    host.run("virt-dmem pool create guests --backend dmemfs --page-size 2M --region auto", timeout=300)
    pool = guests.pool(host)
    print(host.run("cat /sys/fs/dmemfs/firmware_ram; cat /var/lib/virt-dmem/pools/guests.json").stdout)
    assert pool["capacity_bytes"] == WITHHELD
    (ranges,) = host.json("cat /var/lib/virt-dmem/pools/guests.json")["regions"].values()
    seen["region"] = (ranges[0]["start"], ranges[0]["size"])
    (saving,) = host.json("virt-dmem savings --json")["pools"]
    assert (saving["size_bytes"], saving["gross_bytes"]) == (WITHHELD, WITHHELD // 64)
    assert saving["metadata_left_bytes"] <= 2 * 64 * KIB
    assert saving["measured"]


def test_check_finds_nothing_wrong(host: Machine) -> None:
    print(host.run("virt-dmem check", check=False).stdout)
    assert guests.complaints(host) == {}


def test_a_kvm_guest_runs_on_memory_without_struct_pages(host: Machine, seen: dict[str, Any]) -> None:
    seen["uuid"] = uuid = define(host, "bare")
    host.run(f"echo 1 >{TRACING}/events/kvm/kvm_guest_fault/enable")
    start(host, "bare")
    trace = host.run(f"cat {TRACING}/trace; echo 0 >{TRACING}/events/kvm/kvm_guest_fault/enable").stdout
    assert guests.pool(host)["reserved_bytes"] == SIZE
    (line,) = mapped(host, uuid)
    print(line)
    of_mount = "$(awk '$5 == \"/run/virt-dmem/pools/guests\" { print $3 }' /proc/self/mountinfo)"
    faults = [int(host.run(f"cat /sys/fs/dmemfs/{of_mount}/faults_{of}").stdout) for of in ("4k", "2m")]
    print(f"faults of 4K and of 2M: {faults}")
    assert faults[0] == 0
    assert faults[1] > 0
    addresses = [int(address, 16) for address in re.findall(r"kvm_guest_fault: ipa (0x[0-9a-f]+)", trace)]
    ram = [address for address in addresses if address >= GIB]
    blocks = {address // (2 * MIB) for address in ram}
    print(f"stage-2 faults in RAM: {len(ram)}, in {len(blocks)} blocks of 2 MiB")
    assert len(blocks) > 64
    assert len(ram) < 2 * len(blocks)  # by entries of 4K each block would take 512


def test_it_is_saved_and_restored(host: Machine, seen: dict[str, Any]) -> None:
    began = time.monotonic()
    host.run("virsh -q save bare /var/lib/libvirt/bare.save", timeout=600)
    saved = time.monotonic()
    assert guests.pool(host)["reserved_bytes"] == 0
    host.run("virsh -q restore /var/lib/libvirt/bare.save && rm /var/lib/libvirt/bare.save", timeout=600)
    print(f"save {saved - began:.0f} s, restore {time.monotonic() - saved:.0f} s")
    assert guests.pool(host)["reserved_bytes"] == SIZE
    goes_on(host, "bare")
    assert guests.console(host, "bare").count("virt-dmem guest up") == 1
    assert mapped(host, seen["uuid"])


def test_what_it_wrote_is_nowhere_after_it(host: Machine, seen: dict[str, Any]) -> None:
    host.run("virsh -q suspend bare")
    guests.write_pattern(host, seen["uuid"], "ram-node0")
    host.run("virsh -q destroy bare && virsh -q undefine bare")
    assert guests.pool(host)["reserved_bytes"] == 0
    assert guests.search_pool(host, WITHHELD) == ["pattern", "False", "clean", "True"]


@pytest.fixture
def second(host: Machine, seen: dict[str, Any]) -> Iterator[str]:
    """Provide the process of a second host, each with half of the memory as its pool."""
    start, size = seen["region"]
    half = size // 2
    create = "pool create guests --backend dmemfs --page-size 2M --region"
    host.run(f"virt-dmem pool destroy guests && virt-dmem {create} {start:#x}+{half}", timeout=300)
    pid = host.run(SECOND).stdout.strip()
    try:
        host.wait_for(f"grep -q done /tmp/second.out || ! kill -0 {pid}", timeout=400)
        enter = f"nsenter -m -r -t {pid} {PROJECT}/.venv/bin/virt-dmem"
        host.run(f"cat /tmp/second.err >&2; {enter} {create} {start + half:#x}+{half}", timeout=300)
        yield pid
    finally:
        print(host.run(f"cat /tmp/second.err; kill {pid}", check=False).stdout)


def test_it_is_migrated_live(host: Machine, second: str) -> None:
    there = f"qemu+unix:///system?socket=/proc/{second}/root/run/libvirt/libvirt-sock"
    define(host, "mover")
    start(host, "mover")
    began = time.monotonic()
    host.run(f"virsh -q migrate --live mover '{there}' --migrateuri tcp://127.0.0.1:49300", timeout=900)
    print(f"migrated in {time.monotonic() - began:.0f} s")
    assert host.run("virsh domstate mover").stdout.split() == ["shut", "off"]
    assert guests.pool(host)["reserved_bytes"] == 0
    inside = f"nsenter -m -r -t {second}"
    assert host.run(f"{inside} virsh -c qemu:///system domstate mover").stdout.split() == ["running"]
    held = host.json(f"{inside} {PROJECT}/.venv/bin/virt-dmem list --json")["domains"]
    assert [(domain["name"], domain["reserved_bytes"]) for domain in held] == [("mover", SIZE)]
    host.wait_for(f"{inside} grep -q uptime: {guests.log_of('mover')}", timeout=200)
    assert "guest up" not in host.run(f"{inside} cat {guests.log_of('mover')}").stdout
    host.run(f"{inside} virsh -q -c qemu:///system destroy mover", timeout=200)
