# SPDX-License-Identifier: GPL-2.0-or-later
"""Test virt-dmem on a booted Debian host with two nodes and 2 MiB pages: AppArmor, KVM, shutdown.

The tests are one story and run in this order.
"""

from __future__ import annotations

import pytest

from tests.lab import guests
from tests.lab.host import LabCommandFailed
from tests.lab.image import PROJECT
from tests.lab.machine import Machine

MACHINE = {"node_gib": (2, 2), "hole_mib": 128, "name": "host"}
MIB = 1 << 20
RULE = "/etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem"
ON_THEIR_NODES = {"ram-node0": (2 * MIB, {0}), "ram-node1": (2 * MIB, {1})}
WHOLE = {"capacity_bytes": 1024 * MIB, "reserved_bytes": 0, "free_bytes": 1024 * MIB}


@pytest.fixture(scope="module")
def host(machine: Machine) -> Machine:
    guests.provide_guest(machine)
    machine.run("virt-dmem pool create guests --node 0=512M --node 1=512M --page-size 2M")
    return machine


@pytest.fixture(scope="module")
def uuid(host: Machine) -> str:
    return guests.define(host, "two-cells", cells=("256MiB", "128MiB"), boots=True)


def denied(host: Machine) -> str:
    return host.run("dmesg | grep 'apparmor=\"DENIED\"' | grep -v qemu-ga", check=False).stdout


def test_the_holes_in_the_hosts_memory_are_no_memory_of_the_kernel(host: Machine) -> None:
    ram = host.run("grep -i 'system ram' /proc/iomem").stdout
    for node, (start, size) in enumerate(host.holes):
        assert f"-{start - 1:08x} : System RAM" in ram
        total = int(host.run(f"grep MemTotal: /sys/devices/system/node/node{node}/meminfo").stdout.split()[3])
        assert total * 1024 <= (2 << 30) - size


def test_check_finds_nothing_wrong_after_the_installation(host: Machine) -> None:
    assert guests.complaints(host) == {}


def test_the_daemon_hears_in_its_sandbox_that_a_processor_goes_and_comes(host: Machine) -> None:
    heard = 'journalctl -u virt-dmemd --since @{} | grep "processors or memory changed"'
    try:
        for online in (0, 1):
            began = host.run("date +%s.%N").stdout.strip()
            host.run(f"echo {online} >/sys/devices/system/cpu/cpu1/online")
            host.wait_for(heard.format(began))
    finally:
        host.run("echo 1 >/sys/devices/system/cpu/cpu1/online")


def test_each_cell_of_a_kvm_guest_is_on_its_node_in_huge_pages(host: Machine, uuid: str) -> None:
    host.run("dmesg -C")
    host.run("virsh -q start two-cells")
    guests.boot(host, "two-cells")
    assert guests.memory_of(host, uuid) == ON_THEIR_NODES
    assert guests.pool(host)["reserved_bytes"] == 384 * MIB


def test_the_guest_is_confined_and_nothing_was_denied(host: Machine, uuid: str) -> None:
    profile = host.run(f"cat /proc/$(pgrep -f -- '[-]uuid {uuid}')/attr/current").stdout
    assert profile.strip("\0\n") == f"libvirt-{uuid} (enforce)"
    assert denied(host) == ""


def test_qemu_may_create_its_monitor_and_no_other_user_may_connect(host: Machine, uuid: str) -> None:
    host.wait_for("virt-dmem show two-cells --json | grep -q memory-backend-file", timeout=60)
    backends = host.json("virt-dmem show two-cells --json")["domain"]["backends"]
    assert [backend["shared"] for backend in backends] == [True, True]
    assert host.run(f"stat -c %U /var/lib/libvirt/qemu/libvirt-{uuid}.qmp").stdout.strip() == "root"
    assert denied(host) == ""


def test_the_guest_survives_restarts_of_libvirtd_and_the_daemon(host: Machine, uuid: str) -> None:
    guests.lives_on(host, "two-cells", uuid)
    assert guests.pool(host)["reserved_bytes"] == 384 * MIB


def test_another_guests_profile_is_refused_the_extent(host: Machine, uuid: str) -> None:
    extent = f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0"
    other = guests.define(host, "other", cells=("64MiB", "64MiB"))
    host.run("virsh -q start other --paused")
    # the first bytes, with the guest's own profile and with the other guest's; both as root, to bypass file modes
    read = "aa-exec -p libvirt-{} -- /usr/bin/qemu-system-x86_64 -machine none -display none -S -daemonize"
    read += " -object memory-backend-file,id=m,size=256M,share=on,mem-path={} -pidfile /dev/null"
    with pytest.raises(LabCommandFailed, match="Permission denied"):
        host.run(read.format(other, extent))
    assert f'profile="libvirt-{other}"' in denied(host)
    host.run("virsh -q destroy other && virsh -q undefine other")


def test_a_destroyed_guest_leaves_the_pool_whole(host: Machine, uuid: str) -> None:
    host.run("virsh -q destroy two-cells")
    assert guests.pool(host) == WHOLE
    assert set(host.run("ls -A /run/virt-dmem/pools/guests").stdout.split()) <= {".ballast", ".ready", "libvirt"}


def test_a_page_that_outlives_its_guest_pinned_goes_to_no_other(host: Machine, uuid: str) -> None:
    host.run("virsh -q start two-cells --paused")
    extent = f"/run/virt-dmem/pools/guests/libvirt-{uuid}/ram-node0"
    pin = f"cd {PROJECT} && exec .venv/bin/python -m tests.rig.pinner {extent} 0 {8 * MIB} >/run/pinned"
    host.run(["/usr/bin/systemd-run", "-q", "--unit", "pinner", "/bin/sh", "-c", pin])
    host.wait_for("grep -q pinned /run/pinned")
    host.run("virsh -q destroy two-cells")
    host.wait_for(f"virt-dmem pool show guests --json | grep -q '\"pinned_bytes\": {4 * MIB}'")
    assert guests.pool(host)["free_bytes"] == 1016 * MIB, "it may be on either node"
    host.wait_for("virt-dmem alerts --json | grep -q memory-pinned")
    host.run("virsh -q start two-cells --paused")
    assert host.run(f"tr -d '\\0' <{extent} | wc -c", check=False).stdout.strip() in {"0", ""}
    host.run("virsh -q destroy two-cells; systemctl stop pinner.service")
    host.wait_for(f"virt-dmem pool show guests --json | grep -q '\"free_bytes\": {1024 * MIB}'", timeout=60)
    assert guests.pool(host) == WHOLE


def test_without_the_apparmor_rule_the_start_and_check_say_what_to_do(host: Machine, uuid: str) -> None:
    host.run(f"mv {RULE} /root/rule")
    try:
        start = host.run("virsh start two-cells", check=False)
        assert start.status
        assert "AppArmor confines QEMU" in start.stderr
        assert "abstractions/libvirt-qemu.d" in host.run("virt-dmem check", check=False).stdout
        assert "apparmor" in guests.complaints(host)
        assert guests.pool(host) == WHOLE
    finally:
        host.run(f"mv /root/rule {RULE}")


def test_pages_return_to_the_host_when_the_pool_is_destroyed(host: Machine) -> None:
    host.run("virt-dmem pool destroy guests --force")
    assert host.run("cat /proc/sys/vm/nr_hugepages").stdout.strip() == "0"


def test_the_host_powers_off(host: Machine) -> None:
    """Nothing of virt-dmem delays the shutdown."""
    host.power_off()
    assert "Power down" in host.console.read_text("utf-8", "replace")
