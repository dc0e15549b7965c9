# SPDX-License-Identifier: GPL-2.0-or-later
"""Run OpenStack's client on the host of the cloud's services, and compare what nova says with what a pool has.

nova, keystone, placement, glance, MariaDB and RabbitMQ are as Debian 13 has them, set up by ``setup.sh``. Only the
network service is a fake, without networks.
"""

from __future__ import annotations

import json
import re
import subprocess
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
    "Cloud",
    "assert_in_pool",
    "assert_pool_is_whole",
    "become_compute_host",
    "create",
    "create_catalogue",
    "memory_inventory",
    "openstack",
    "pids_of",
    "plug",
    "root_with_openstack",
    "sdk",
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
_CATALOGUE = """
import openstack
cloud = openstack.connect()
for name, mib in {flavors}.items():
    cloud.compute.create_flavor(name=name, ram=mib, disk=0, vcpus=1)
def image(name, kind, file, **properties):
    return cloud.create_image(
        name, filename=file, disk_format=kind[0], container_format=kind[1], wait=True, timeout=600, **properties
    ).id
kernel, initrd = image("kernel", ("aki", "aki"), "/root/kernel"), image("initrd", ("ari", "ari"), "/root/initrd")
image("guest", ("raw", "bare"), "/root/disk", kernel_id=kernel, ramdisk_id=initrd, os_command_line={options!r})
"""
_INVENTORY = """
import json, openstack
placement = openstack.connect().placement
(host,) = placement.get("/resource_providers?name=compute1").json()["resource_providers"]
print(json.dumps(placement.get("/resource_providers/" + host["uuid"] + "/inventories").json()["inventories"]))
"""
_SHOWS = re.compile(r"([a-z]+ )+?(create|evacuate|list|show) ")
"""The client's commands that print something, and take a format."""
_WATCHER = """
import json, sys, openstack
compute = openstack.connect().compute
def get(path):
    return compute.get(path, microversion="2.95").json()
for line in sys.stdin:
    found = get(f"/servers?name=^{line.strip()}$")["servers"]
    print(json.dumps(get("/servers/" + found[0]["id"])["server"] if found else {}), flush=True)
"""


class Cloud(Container):
    """The host that has OpenStack's services, and its client."""

    _watcher: subprocess.Popen[bytes] | None = None

    def server(self, name: str) -> dict[str, Any]:
        """Return what nova's API says of a server; without a new process each time, as the client would be."""
        if self._watcher is None:
            self._watcher = self.begin(["bash", "-c", f". /root/openstackrc && exec python3 -c '{_WATCHER}'"])
        assert self._watcher.stdin is not None
        assert self._watcher.stdout is not None
        self._watcher.stdin.write(f"{name}\n".encode())
        self._watcher.stdin.flush()
        found: dict[str, Any] = json.loads(self._watcher.stdout.readline())
        assert found, f"there is no server {name}"
        return found

    def close(self) -> None:
        """End it, and discard its writes."""
        if self._watcher is not None:
            self._watcher.communicate()
        super().close()


def root_with_openstack() -> Path:
    """Return a root that has the packages which ``setup.sh`` lists.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    """
    return the_root_with("trixie", " ".join(_PACKAGES).split())


def write_rule(host: Host) -> None:
    """Write the rule that adopts nova's domains, and have virt-dmemd read it."""
    host.write("/etc/virt-dmem/conf.d/nova.toml", _RULE)
    host.run("systemctl restart virt-dmemd")


def become_compute_host(host: Host, cloud: Cloud, address: str) -> None:
    """Make a host with a pool a compute host of the cloud, at an address that it has; wait until nova knows it."""
    written = cloud.run("tar -C / -c etc/nova/nova.conf var/lib/nova/.ssh | base64").stdout
    host.run("base64 -d | tar -C / -x", stdin=written)
    host.run(f"{HERE}/compute.sh {address}", timeout=600)
    name = host.run("hostname").stdout.strip()
    wanted = f"openstack hypervisor show {name} -f value -c state | grep -q up"
    cloud.wait_for(f". /root/openstackrc && {wanted}", timeout=600)


def plug(machine: Machine, address: str) -> None:
    """Give a machine's network card its address, which it has until the machine ends."""
    machine.run("modprobe virtio_net")
    nic = machine.wait_for("ls /sys/class/net | grep ^e").strip()
    machine.run(f"ip addr add {address}/24 dev {nic} && ip link set {nic} up")


def create_catalogue(cloud: Cloud) -> None:
    """Create flavors and an image.

    Flavors: ``small``, ``larger``, and ``huge``, which no pool has room for. The image ``guest``: a disk, and
    a kernel and an initramfs that write to the serial console.
    """
    cloud.write("/root/initrd", make_initramfs(fetch_kernel()))
    cloud.run(f"cp {PROJECT}/.cache/guest/kernel/boot/vmlinuz-* /root/kernel && truncate -s 8M /root/disk")
    flavors = {"small": SERVER_MIB, "larger": 2 * SERVER_MIB, "huge": 2 * POOL_MIB}
    sdk(cloud, _CATALOGUE.format(flavors=flavors, options=f"console=ttyS0 {guests.CMDLINE}"))


def sdk(cloud: Cloud, script: str) -> str:
    """Run a Python program with OpenStack's library there, and return its output."""
    return cloud.run(f". /root/openstackrc && exec python3 - <<'EOF'\n{script}\nEOF\n", timeout=600).stdout


def memory_inventory(cloud: Cloud) -> dict[str, Any]:
    """Return what placement has of the memory of the first compute host, in MiB."""
    found: dict[str, Any] = json.loads(sdk(cloud, _INVENTORY))["MEMORY_MB"]
    return found


def openstack(cloud: Cloud, command: str, *, check: bool = True) -> Any:
    """Run the ``openstack`` client, and return what it prints as JSON; ``None``: nothing."""
    shows = _SHOWS.match(f"{command} ")
    done = cloud.run(
        f". /root/openstackrc && openstack {command} {'-f json' if shows else ''}", timeout=600, check=check
    )
    return json.loads(done.stdout) if shows and done.stdout.strip() else None


def wait_for_status(cloud: Cloud, name: str, status: str) -> dict[str, Any]:
    """Wait until nova says that a server has this status."""
    deadline = time.monotonic() + 300 * PATIENCE
    while (found := cloud.server(name))["status"] != status or found["OS-EXT-STS:task_state"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def create(cloud: Cloud, name: str, flavor: str, *, on: str = "") -> dict[str, Any]:
    """Create a server without a network, and wait until nova has made or rejected it; ``on``: a compute host.

    nova records why it rejected one shortly after the status ``ERROR``.
    """
    where = f"--host {on}" if on else ""
    openstack(cloud, f"server create --flavor {flavor} --image guest --nic none {where} {name}")
    deadline = time.monotonic() + 300 * PATIENCE
    while (found := cloud.server(name))["status"] == "BUILD" or (
        found["status"] == "ERROR" and "fault" not in found
    ):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def wait_for_guest(host: Host, uuid: str, *, says: str = "virt-dmem guest up") -> None:
    """Wait until a server's guest has written that to its console, since the last time that this was waited for."""
    log = f"/var/lib/nova/instances/{uuid}/console.log"  # to which QEMU appends
    host.wait_for(f"grep -q '{says}' {log} && : >{log}", timeout=180)


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
    assert host.run("ls /run/virt-dmem/pools/guests").stdout.split() == []
