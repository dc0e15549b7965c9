# SPDX-License-Identifier: GPL-2.0-or-later
"""Run OpenStack's client on the host of the cloud's services, and compare what nova says with what a pool has.

nova, keystone, placement, glance, MariaDB and RabbitMQ are as Debian 13 has them, set up by ``setup.sh``. Only the
network service is a fake, without networks.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

from tests.lab import guests
from tests.lab.container import Container
from tests.lab.host import PATIENCE, Host
from tests.lab.image import PROJECT, the_root_with
from tests.lab.machine import Machine
from tests.rig.guest import fetch_kernel, make_initramfs

__all__ = [
    "CONTROLLER",
    "HERE",
    "MIB",
    "POOL_MIB",
    "SERVER_MIB",
    "assert_in_pool",
    "assert_pool_is_whole",
    "become_compute_host",
    "create",
    "create_flavors",
    "create_image",
    "openstack",
    "pids_of",
    "plug",
    "root_with_openstack",
    "server",
    "wait_for_guest",
    "wait_for_status",
    "write_rule",
]

HERE = f"{PROJECT}/tests/lab/openstack"
CONTROLLER = "10.20.0.1"
"""The address of the host with the services."""
POOL_MIB, SERVER_MIB = 512, 128
MIB = 1 << 20
_PACKAGES = re.findall(r"^#   ([a-z][a-z0-9 -]*)$", (Path(__file__).parent / "setup.sh").read_text(), re.MULTILINE)
_RULE = """[[adopt]]
rule = "nova"
metadata = "http://openstack.org/xmlns/libvirt/nova/*"
pool = "guests"
unsuitable = "refuse"
"""
_SHOWS = re.compile(r"([a-z]+ )+?(create|evacuate|list|show) ")
"""The client's commands that print something, and take a format."""


def root_with_openstack() -> Path:
    """Return a root that has the packages which ``setup.sh`` lists.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    """
    return the_root_with("trixie", " ".join(_PACKAGES).split())


def write_rule(host: Host) -> None:
    """Write the rule that adopts nova's domains, and have virt-dmemd read it."""
    host.write("/etc/virt-dmem/conf.d/nova.toml", _RULE)
    host.run("systemctl restart virt-dmemd")


def become_compute_host(host: Host, cloud: Container, address: str) -> None:
    """Make a host with a pool a compute host of the cloud, at an address that it has; wait until nova knows it."""
    written = cloud.run("tar -C / -c etc/nova/nova.conf var/lib/nova/.ssh | base64").stdout
    host.run("base64 -d | tar -C / -x", stdin=written)
    host.run(f"{HERE}/compute.sh {address}", timeout=600)
    name = host.run("hostname").stdout.strip()
    wanted = f"openstack hypervisor show {name} -f value -c state | grep -q up"
    cloud.wait_for(f". /root/openstackrc && {wanted}", timeout=600)


def plug(machine: Machine, address: str) -> None:
    """Give a machine's network card its address, which it has until the machine ends."""
    machine.run(f"nic=$(ls /sys/class/net | grep ^e) && ip addr add {address}/24 dev $nic && ip link set $nic up")


def create_flavors(cloud: Container) -> None:
    """Create the flavors ``small``, ``larger``, and ``huge``, which no pool has room for."""
    for name, mib in {"small": SERVER_MIB, "larger": 2 * SERVER_MIB, "huge": 2 * POOL_MIB}.items():
        openstack(cloud, f"flavor create --ram {mib} --disk 1 --vcpus 1 {name}")


def create_image(cloud: Container) -> None:
    """Create the image ``guest``: an empty disk, and a kernel and an initramfs that write to the serial console."""
    cloud.write("/root/initrd", make_initramfs(fetch_kernel()))
    cloud.run(f"cp {PROJECT}/.cache/guest/kernel/boot/vmlinuz-* /root/kernel && truncate -s 8M /root/disk")
    ids = {}
    for name, kind in (("kernel", "aki"), ("initrd", "ari")):
        kinds = f"--disk-format {kind} --container-format {kind}"
        ids[name] = openstack(cloud, f"image create {kinds} --file /root/{name} {name}")["id"]
    own = f"--property kernel_id={ids['kernel']} --property ramdisk_id={ids['initrd']}"
    own += f" --property os_command_line={shlex.quote(f'console=ttyS0 {guests.CMDLINE}')}"
    openstack(cloud, f"image create --disk-format raw --container-format bare --file /root/disk {own} guest")


def openstack(cloud: Container, command: str, *, check: bool = True) -> Any:
    """Run the ``openstack`` client, and return what it prints as JSON; ``None``: nothing."""
    shows = _SHOWS.match(f"{command} ")
    done = cloud.run(
        f". /root/openstackrc && openstack {command} {'-f json' if shows else ''}", timeout=600, check=check
    )
    return json.loads(done.stdout) if shows and done.stdout.strip() else None


def server(cloud: Container, name: str) -> dict[str, Any]:
    """Return what nova says of a server."""
    found: dict[str, Any] = openstack(cloud, f"server show {shlex.quote(name)}")
    return found


def wait_for_status(cloud: Container, name: str, status: str) -> dict[str, Any]:
    """Wait until nova says that a server has this status."""
    deadline = time.monotonic() + 300 * PATIENCE
    while (found := server(cloud, name))["status"] != status or found["OS-EXT-STS:task_state"]:
        assert time.monotonic() < deadline, found
    return found


def create(cloud: Container, name: str, flavor: str, *, on: str = "") -> dict[str, Any]:
    """Create a server without a network, and wait until nova has made or rejected it; ``on``: a compute host."""
    where = f"--host {on}" if on else ""
    openstack(cloud, f"server create --flavor {flavor} --image guest --nic none {where} {name}")
    deadline = time.monotonic() + 300 * PATIENCE
    while (found := server(cloud, name))["status"] == "BUILD":
        assert time.monotonic() < deadline, found
    return found


def wait_for_guest(host: Host, uuid: str, *, says: str = "virt-dmem guest up") -> None:
    """Wait until a server's guest runs: it has written that to its console since its QEMU began."""
    host.wait_for(f"grep -q '{says}' /var/lib/nova/instances/{uuid}/console.log", timeout=180)


def pids_of(host: Host, uuid: str) -> list[str]:
    """Return the process id of a server's QEMU."""
    return host.run(f"pgrep -f -- '[-]uuid {uuid}'", check=False).stdout.split()


def assert_in_pool(host: Host, uuid: str, mib: int) -> None:
    """Its QEMU maps that much of the pool, in huge pages, and the ledger has the same."""
    (pid,) = pids_of(host, uuid)
    mapped = host.run(f"grep -h 'pools/guests/.*libvirt-{uuid}/' /proc/{pid}/maps | cut -d ' ' -f 1").stdout
    sizes = [int(end, 16) - int(start, 16) for start, end in (line.split("-") for line in mapped.split())]
    assert sum(sizes) == mib * MIB
    shown = host.json("virt-dmem pool show guests --json")["pool"]
    if shown["backend"] == "hugetlbfs":
        assert [page for page, _ in guests.memory_of(host, uuid).values()] == [2 * MIB]
    reserved = {
        domain["uuid"]: domain["reserved_bytes"] for domain in host.json("virt-dmem list --json")["domains"]
    }
    assert reserved == {uuid: mib * MIB}
    assert shown["reserved_bytes"] == mib * MIB


def assert_pool_is_whole(host: Host) -> None:
    """Nothing is reserved, and all is there."""
    host.wait_for(f"virt-dmem pool show guests --json | grep -q '\"free_bytes\": {POOL_MIB * MIB}'")
    assert host.json("virt-dmem list --json")["domains"] == []
    assert host.run("ls -A /run/virt-dmem/pools/guests").stdout.split() == []
