# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide the hosts of a cloud: the first has all services, the second nova-compute only; both have a pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import HOST
from tests.lab.container import Container
from tests.lab.image import NoPackages
from tests.lab.openstack.cloud import HERE, POOL_MIB, SERVER_MIB, openstack, provide_pool, root_with_openstack
from tests.rig.hugepages_lock import hugepages_lent


@pytest.fixture(scope="session")
def root() -> Path:
    """Provide the root of a Debian host with OpenStack's packages."""
    try:
        return root_with_openstack()
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host(root: Path) -> Iterator[Container]:
    """Provide a host that is the whole of an OpenStack, with a pool and a rule that adopts nova's domains."""
    with hugepages_lent(), Container(root, name="compute1") as host:
        provide_pool(host)
        began = time.monotonic()
        host.run(f"{HERE}/setup.sh {POOL_MIB} qemu", timeout=900)
        print(f"OpenStack was set up in {time.monotonic() - began:.0f} s")
        for name, mib in {"small": SERVER_MIB, "larger": 2 * SERVER_MIB, "huge": 2 * POOL_MIB}.items():
            openstack(host, f"flavor create --ram {mib} --disk 1 --vcpus 1 {name}")
        host.run("qemu-img create -q -f raw /root/empty.raw 8M")
        openstack(host, "image create --disk-format raw --container-format bare --file /root/empty.raw empty")
        yield host


@pytest.fixture(scope="module", autouse=True)
def logs(request: pytest.FixtureRequest, host: Container) -> None:
    """Have the host's logs in the report of a failure."""
    request.node.stash[HOST] = host


@pytest.fixture(scope="session")
def second(root: Path, host: Container) -> Iterator[Container]:
    """Provide a second compute host of the same cloud, which shares the first one's network."""
    with Container(root, name="compute2", network=host) as second:
        provide_pool(second)
        second.write("/etc/nova/nova.conf", host.run("cat /etc/nova/nova.conf").stdout)
        second.run(f"{HERE}/compute.sh 127.0.0.2", timeout=300)
        host.wait_for(". /root/openstackrc && openstack hypervisor show compute2 -f value -c state | grep -q up")
        yield second
