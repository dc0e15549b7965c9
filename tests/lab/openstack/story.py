# SPDX-License-Identifier: GPL-2.0-or-later
"""Run servers of a real nova on a pool, with nova unchanged; one story, in this order. ``make fleet`` runs it.

The host is a container, so guests run under TCG; with nova, keystone, placement, glance, MariaDB and RabbitMQ as
Debian 13 has them, set up by ``setup.sh``. Only the network service is a fake, without networks.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import guests
from tests.lab.container import Container
from tests.lab.host import PATIENCE
from tests.lab.image import PROJECT, NoPackages, the_root_with
from tests.rig.hugepages_lock import hugepages_lent

HERE = "tests/lab/openstack"
PACKAGES = re.findall(r"^#   ([a-z][a-z0-9 -]*)$", (Path(__file__).parent / "setup.sh").read_text(), re.MULTILINE)
POOL_MIB, SERVER_MIB = 512, 128
MIB = 1 << 20
RULE = """[[adopt]]
rule = "nova"
metadata = "http://openstack.org/xmlns/libvirt/nova/*"
pool = "guests"
unsuitable = "refuse"
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Container]:
    """Provide a host that is the whole of an OpenStack, with a pool and a rule that adopts nova's domains."""
    try:
        root = the_root_with("trixie", " ".join(PACKAGES).split())
    except NoPackages as error:
        pytest.skip(str(error))
    with hugepages_lent(), Container(root, name="compute1") as host:
        host.unpack_project()
        host.run("rm /lib/modules/*/build")  # of a kernel that does not run here: no module is built for it
        host.run(f"make --silent -C {PROJECT} install && systemctl try-reload-or-restart libvirtd", timeout=400)
        host.write("/etc/virt-dmem/conf.d/nova.toml", RULE)
        host.run(f"systemctl restart virt-dmemd && virt-dmem pool create guests --size {POOL_MIB}M --page-size 2M")
        began = time.monotonic()
        host.run(f"{PROJECT}/{HERE}/setup.sh {POOL_MIB} qemu", timeout=900)
        print(f"OpenStack was set up in {time.monotonic() - began:.0f} s")
        for name, mib in {"small": SERVER_MIB, "larger": 2 * SERVER_MIB, "huge": 2 * POOL_MIB}.items():
            openstack(host, f"flavor create --ram {mib} --disk 1 --vcpus 1 {name}")
        host.run("qemu-img create -q -f raw /root/empty.raw 8M")
        openstack(host, "image create --disk-format raw --container-format bare --file /root/empty.raw empty")
        yield host


def openstack(host: Container, command: str, *, check: bool = True) -> Any:
    """Run the ``openstack`` client, and return what it prints as JSON; ``None``: nothing."""
    shows = not re.match(
        r"server (add|delete|pause|reboot|resize confirm|start|stop|rescue|unrescue|shelve)", command
    )
    form = "-f json" if shows else ""
    done = host.run(f". /root/openstackrc && openstack {command} {form}", timeout=300, check=check)
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


def create(host: Container, name: str, flavor: str) -> dict[str, Any]:
    """Create a server without a network, and wait until nova has made or rejected it."""
    openstack(host, f"server create --flavor {flavor} --image empty --nic none {name}")
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


def test_what_the_scheduler_may_give_is_the_pool(host: Container) -> None:
    ask = (
        "import json, openstack; to = openstack.connect().placement;"
        "(host,) = to.get('/resource_providers').json()['resource_providers'];"
        "print(json.dumps(to.get('/resource_providers/' + host['uuid'] + '/inventories').json()['inventories']))"
    )
    inventory = json.loads(host.run(f". /root/openstackrc && python3 -c {shlex.quote(ask)}").stdout)["MEMORY_MB"]
    assert (inventory["total"], inventory["reserved"], inventory["allocation_ratio"]) == (POOL_MIB, 0, 1.0)


def test_a_server_is_adopted_and_has_its_memory_from_the_pool(host: Container) -> None:
    began = time.monotonic()
    made = create(host, "one", "small")
    print(f"from 'server create' to an active server, as the client sees it: {time.monotonic() - began:.0f} s")
    assert made["status"] == "ACTIVE", made
    assert_in_pool(host, made["id"], SERVER_MIB)
    said = host.run(f"virt-dmem rules {made['OS-EXT-SRV-ATTR:instance_name']}").stdout
    assert "nova" in said


def test_a_server_that_cannot_fit_is_refused_by_the_scheduler(host: Container) -> None:
    made = create(host, "giant", "huge")
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ERROR", None), made
    openstack(host, "server delete --wait giant")
    assert len(host.run("virsh -q list --all --name").stdout.split()) == 1


def test_a_start_that_the_pool_refuses_leaves_nothing_behind(host: Container) -> None:
    """Something else took room of the pool that nova does not know of."""
    other = guests.define(host, "other", cells=(f"{POOL_MIB - SERVER_MIB}MiB",), kind="qemu")
    host.run("virsh -q start other --paused")
    made = create(host, "unlucky", "small")
    assert made["status"] == "ERROR"
    openstack(host, "server delete --wait unlucky")
    assert host.run("virsh -q list --all --name").stdout.split() == ["instance-00000001", "other"]
    host.run("virsh -q destroy other && virsh -q undefine other")
    assert_in_pool(host, server(host, "one")["id"], SERVER_MIB)
    assert other not in host.run("virt-dmem list --json").stdout


def test_a_hard_reboot_makes_the_xml_anew_and_the_memory_comes_from_the_pool(host: Container) -> None:
    uuid = server(host, "one")["id"]
    before = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout
    openstack(host, "server reboot --hard --wait one")
    assert host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout != before
    assert_in_pool(host, uuid, SERVER_MIB)


def test_what_is_stopped_holds_nothing_and_what_is_started_again_has_its_memory(host: Container) -> None:
    openstack(host, "server stop one")
    uuid = wait_for_status(host, "one", "SHUTOFF")["id"]
    assert_pool_is_whole(host)
    openstack(host, "server start one")
    wait_for_status(host, "one", "ACTIVE")
    assert_in_pool(host, uuid, SERVER_MIB)


def test_restarts_of_nova_compute_libvirtd_and_the_daemon_change_nothing(host: Container) -> None:
    uuid = server(host, "one")["id"]
    host.run("systemctl restart virt-dmemd libvirtd nova-compute", timeout=300)
    host.wait_for("virt-dmem list --json")
    assert server(host, "one")["status"] == "ACTIVE"
    assert_in_pool(host, uuid, SERVER_MIB)


def test_a_resized_server_has_the_memory_of_its_new_flavor(host: Container) -> None:
    openstack(host, "server resize --flavor larger --wait one")
    uuid = wait_for_status(host, "one", "VERIFY_RESIZE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)
    openstack(host, "server resize confirm one")
    wait_for_status(host, "one", "ACTIVE")


def test_a_server_in_rescue_and_after_it_has_its_memory_from_the_pool(host: Container) -> None:
    openstack(host, "server rescue one")
    uuid = wait_for_status(host, "one", "RESCUE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)
    openstack(host, "server unrescue one")
    wait_for_status(host, "one", "ACTIVE")
    assert_in_pool(host, uuid, 2 * SERVER_MIB)


def test_a_shelved_server_holds_nothing_and_comes_back(host: Container) -> None:
    openstack(host, "server shelve one")
    wait_for_status(host, "one", "SHELVED_OFFLOADED")
    assert_pool_is_whole(host)
    openstack(host, "server unshelve one")
    uuid = wait_for_status(host, "one", "ACTIVE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)


def test_a_deleted_server_gives_all_back(host: Container) -> None:
    openstack(host, "server delete --wait one")
    assert_pool_is_whole(host)
    assert host.run("virsh -q list --all --name").stdout.split() == []
    assert host.json("virt-dmem alerts --json")["alerts"] == []
