# SPDX-License-Identifier: GPL-2.0-or-later
"""Run OpenStack's client on a host of the lab, and compare what nova says with what the pool has.

A host is a container, so guests run under TCG; with nova, keystone, placement, glance, MariaDB and RabbitMQ as
Debian 13 has them, set up by ``setup.sh``. Only the network service is a fake, without networks.
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
from tests.lab.host import PATIENCE
from tests.lab.image import PROJECT, the_root_with

__all__ = [
    "HERE",
    "MIB",
    "POOL_MIB",
    "SERVER_MIB",
    "assert_in_pool",
    "assert_pool_is_whole",
    "create",
    "openstack",
    "provide_pool",
    "root_with_openstack",
    "server",
    "wait_for_status",
]

HERE = f"{PROJECT}/tests/lab/openstack"
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


def provide_pool(host: Container) -> None:
    """Install virt-dmem, with a pool and a rule that adopts nova's domains."""
    host.unpack_project()
    host.run("rm /lib/modules/*/build")  # of a kernel that does not run here: no module is built for it
    host.run(f"make --silent -C {PROJECT} install && systemctl try-reload-or-restart libvirtd", timeout=400)
    host.write("/etc/virt-dmem/conf.d/nova.toml", _RULE)
    host.run(f"systemctl restart virt-dmemd && virt-dmem pool create guests --size {POOL_MIB}M --page-size 2M")


def openstack(host: Container, command: str, *, check: bool = True) -> Any:
    """Run the ``openstack`` client, and return what it prints as JSON; ``None``: nothing."""
    shows = _SHOWS.match(f"{command} ")
    done = host.run(
        f". /root/openstackrc && openstack {command} {'-f json' if shows else ''}", timeout=300, check=check
    )
    return json.loads(done.stdout) if shows and done.stdout.strip() else None


def server(host: Container, name: str) -> dict[str, Any]:
    """Return what nova says of a server."""
    found: dict[str, Any] = openstack(host, f"server show {shlex.quote(name)}")
    return found


def wait_for_status(host: Container, name: str, status: str) -> dict[str, Any]:
    """Wait until nova says that a server has this status."""
    deadline = time.monotonic() + 120 * PATIENCE
    while (found := server(host, name))["status"] != status or found["OS-EXT-STS:task_state"]:
        assert time.monotonic() < deadline, found
    return found


def create(host: Container, name: str, flavor: str, *, on: str = "") -> dict[str, Any]:
    """Create a server without a network, and wait until nova has made or rejected it; ``on``: a compute host."""
    where = f"--host {on}" if on else ""
    openstack(host, f"server create --flavor {flavor} --image empty --nic none {where} {name}")
    deadline = time.monotonic() + 120 * PATIENCE
    while (found := server(host, name))["status"] == "BUILD":
        assert time.monotonic() < deadline, found
    return found


def assert_in_pool(host: Container, uuid: str, mib: int) -> None:
    """Its QEMU maps that much of the pool, in huge pages, and the ledger has the same."""
    mapped = host.run(
        f"grep -h 'pools/guests/.*libvirt-{uuid}/' /proc/$(pgrep -f -- '[-]uuid {uuid}')/maps | cut -d ' ' -f 1"
    ).stdout
    sizes = [int(end, 16) - int(start, 16) for start, end in (line.split("-") for line in mapped.split())]
    assert sum(sizes) == mib * MIB
    assert [page for page, _ in guests.memory_of(host, uuid).values()] == [2 * MIB]
    reserved = {
        domain["uuid"]: domain["reserved_bytes"] for domain in host.json("virt-dmem list --json")["domains"]
    }
    assert reserved == {uuid: mib * MIB}


def assert_pool_is_whole(host: Container) -> None:
    """Nothing is reserved, and all is there."""
    host.wait_for(f"virt-dmem pool show guests --json | grep -q '\"free_bytes\": {POOL_MIB * MIB}'")
    assert host.json("virt-dmem list --json")["domains"] == []
