# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide a cloud: a container with OpenStack's services, and two compute hosts, each with a pool of huge pages.

The compute hosts are containers too, with guests under TCG. ``FLEET_BACKEND=tmpfs``: their pools are of that. With
``FLEET_BACKEND=dmemfs`` they are machines with KVM, and their pools are on dmemfs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab.conftest import HOST
from tests.lab.container import Container
from tests.lab.host import Host
from tests.lab.image import PROJECT, Image, NoPackages
from tests.lab.machine import Machine
from tests.lab.openstack.cloud import (
    CONTROLLER,
    HERE,
    POOL_MIB,
    Cloud,
    become_compute_host,
    create_catalogue,
    plug,
    root_with_openstack,
    write_rule,
)
from tests.lab.openstack.disk import image_with_openstack
from tests.rig.hugepages_lock import hugepages_lent

BACKEND = os.environ.get("FLEET_BACKEND", "hugetlbfs")
_KIND = "kvm" if BACKEND == "dmemfs" else "qemu"
_NETWORK = f"""
ip link add lab type bridge
ip addr add {CONTROLLER}/24 dev lab
ip link set lab up
"""


@pytest.fixture(scope="session")
def root() -> Path:
    """Provide the root of a Debian host with OpenStack's packages."""
    try:
        return root_with_openstack()
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cloud(root: Path) -> Iterator[Cloud]:
    """Provide the host that has OpenStack's services, and its client."""
    with Cloud(root, name="controller") as cloud:
        cloud.unpack_project()
        cloud.run(_NETWORK)
        began = time.monotonic()
        cloud.run(f"{HERE}/setup.sh {CONTROLLER} {POOL_MIB} {_KIND}", timeout=900)
        create_catalogue(cloud)
        print(f"OpenStack's services were set up in {time.monotonic() - began:.0f} s")
        yield cloud


@pytest.fixture(scope="session")
def image(root: Path) -> Iterator[Image]:
    """Provide the disk of a host with OpenStack's packages and with virt-dmem installed."""
    with image_with_openstack(root) as image:
        yield image


@pytest.fixture(scope="session")
def host(root: Path, cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Provide a compute host with a pool, and with a rule that adopts nova's domains."""
    with _compute_host(1, root, cloud, request) as host:
        yield host


@pytest.fixture(scope="session")
def second(root: Path, cloud: Cloud, host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Provide a second one."""
    with _compute_host(2, root, cloud, request) as host:
        yield host


@contextmanager
def _compute_host(number: int, root: Path, cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Host]:
    name, address = f"compute{number}", f"{CONTROLLER}{number}"
    began = time.monotonic()
    with ExitStack() as undo:
        host: Host
        if BACKEND == "dmemfs":
            tap = f"vm{number}"
            cloud.run(f"ip tuntap add {tap} mode tap && ip link set {tap} master lab up")
            image = request.getfixturevalue("image")
            machine = Machine(image, node_gib=(2,), hole_mib=POOL_MIB, name=name, tap=(cloud.leader, tap))
            host = undo.enter_context(machine)
            host.run(f"echo {name} >/etc/hostname && hostname {name}")
            plug(host, address)
            host.run("virt-dmem pool create guests --backend dmemfs --page-size 2M --on-boot", timeout=300)
        else:
            if number == 1 and BACKEND == "hugetlbfs":
                undo.enter_context(hugepages_lent())
            host = undo.enter_context(Container(root, name=name, network=cloud))
            host.unpack_project()
            host.run("rm /lib/modules/*/build")  # of a kernel that does not run here: no module is built for it
            host.run(f"make --silent -C {PROJECT} install", timeout=400)
            host.run(f"ip addr add {address}/24 dev lab")
            host.run(f"virt-dmem pool create guests --backend {BACKEND} --size {POOL_MIB}M --on-boot")
        write_rule(host)
        become_compute_host(host, cloud, address)
        print(f"{name} was set up in {time.monotonic() - began:.0f} s")
        yield host


@pytest.fixture(scope="module", autouse=True)
def logs(request: pytest.FixtureRequest, host: Host) -> None:
    """Have the host's logs in the report of a failure."""
    request.node.stash[HOST] = host
