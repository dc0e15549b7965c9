# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a server of a real nova between two hosts with pools; one story, in this order. ``make fleet`` runs it."""

from __future__ import annotations

import time

import pytest

from tests.lab.container import Container
from tests.lab.host import Host
from tests.lab.machine import Machine
from tests.lab.openstack.cloud import (
    CONTROLLER,
    POOL_MIB,
    SERVER_MIB,
    Cloud,
    assert_in_pool,
    assert_pool_is_whole,
    create,
    openstack,
    plug,
    wait_for_guest,
    wait_for_status,
)
from tests.lab.openstack.story import give_room_back, take_room

UP, GOES_ON = "virt-dmem guest up", "uptime: "


@pytest.fixture(scope="module", autouse=True)
def hosts(host: Host, second: Host) -> dict[str, Host]:
    """Provide both by their names; what other modules left is gone."""
    assert_pool_is_whole(host)
    return {"compute1": host, "compute2": second}


def is_on(cloud: Cloud, hosts: dict[str, Host], name: str, *, mib: int = SERVER_MIB) -> str:
    """Verify that the server is active there, with its memory in that pool, and nothing in the other; its UUID."""
    found = wait_for_status(cloud, "mover", "ACTIVE")
    assert found["OS-EXT-SRV-ATTR:host"] == name
    for other, host in hosts.items():
        if other == name:
            assert_in_pool(host, found["id"], mib)
        else:
            assert_pool_is_whole(host)
    return str(found["id"])


@pytest.mark.parametrize(("origin", "destination"), [("compute1", "compute2"), ("compute2", "compute1")])
def test_a_server_migrates_live_from_pool_to_pool(
    cloud: Cloud, hosts: dict[str, Host], origin: str, destination: str
) -> None:
    if origin == "compute1":
        made = create(cloud, "mover", "small", on=origin)
        assert made["status"] == "ACTIVE", made
        wait_for_guest(hosts[origin], made["id"])
    is_on(cloud, hosts, origin)
    began = time.monotonic()
    openstack(cloud, f"server migrate --live-migration --host {destination} --wait mover")
    print(f"live migration, as the client sees it: {time.monotonic() - began:.0f} s")
    wait_for_guest(hosts[destination], is_on(cloud, hosts, destination), says=GOES_ON)


def test_a_host_whose_pool_drains_rejects_what_migrates_there_and_it_runs_on(
    cloud: Cloud, hosts: dict[str, Host]
) -> None:
    hosts["compute2"].run("virt-dmem pool drain guests")
    openstack(cloud, "server migrate --live-migration --host compute2 --wait mover", check=False)
    is_on(cloud, hosts, "compute1")
    hosts["compute2"].run("virt-dmem pool drain guests --undo")
    is_on(cloud, hosts, "compute1")


def test_a_server_that_is_resized_to_another_host_has_its_memory_from_that_ones_pool(
    cloud: Cloud, hosts: dict[str, Host]
) -> None:
    uuid = cloud.server("mover")["id"]
    openstack(cloud, "server resize --flavor larger --wait mover")
    found = wait_for_status(cloud, "mover", "VERIFY_RESIZE")
    assert found["OS-EXT-SRV-ATTR:host"] == "compute2"
    assert_in_pool(hosts["compute2"], uuid, 2 * SERVER_MIB)
    assert_pool_is_whole(hosts["compute1"])
    openstack(cloud, "server resize revert mover")
    is_on(cloud, hosts, "compute1")
    openstack(cloud, "server migrate --host compute2 --wait mover")
    wait_for_status(cloud, "mover", "VERIFY_RESIZE")
    openstack(cloud, "server migration confirm mover")
    is_on(cloud, hosts, "compute2")
    wait_for_guest(hosts["compute2"], uuid)


def test_a_start_that_one_pool_refuses_succeeds_on_novas_next_host(cloud: Cloud, hosts: dict[str, Host]) -> None:
    """The scheduler prefers the host with more memory left, and there something else took it."""
    is_on(cloud, hosts, "compute2")
    other = take_room(hosts["compute1"], POOL_MIB)
    made = create(cloud, "lucky", "small")
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", "compute2"), made
    log = "/var/log/nova/nova-compute.log"
    assert made["OS-EXT-SRV-ATTR:instance_name"] in hosts["compute1"].run(f"grep -h not-enough-memory {log}").stdout
    held = hosts["compute1"].json("virt-dmem list --json")["domains"]
    assert [domain["uuid"] for domain in held] == [other]
    assert hosts["compute1"].run("virsh -q list --all --name").stdout.split() == ["other"]
    openstack(cloud, "server delete --wait lucky")
    give_room_back(hosts["compute1"])
    is_on(cloud, hosts, "compute2")


def test_a_server_whose_host_is_lost_is_built_anew_from_the_pool_of_another(
    cloud: Cloud, host: Host, second: Host
) -> None:
    uuid = cloud.server("mover")["id"]
    second.run("sync")
    if isinstance(second, Machine):
        second.kill()
    elif isinstance(second, Container):
        second.shut_down()
    openstack(cloud, "compute service set --down compute2 nova-compute")
    openstack(cloud, "server evacuate --host compute1 mover")
    wait_for_status(cloud, "mover", "SHUTOFF")  # as from microversion 2.95 on
    openstack(cloud, "server start mover")
    assert wait_for_status(cloud, "mover", "ACTIVE")["OS-EXT-SRV-ATTR:host"] == "compute1"
    assert_in_pool(host, uuid, SERVER_MIB)
    wait_for_guest(host, uuid)


def test_the_lost_host_comes_back_without_it(cloud: Cloud, host: Host, second: Host) -> None:
    if isinstance(second, Machine):
        second.start()
        plug(second, f"{CONTROLLER}2")
    elif isinstance(second, Container):
        second.start()
    # nova allows that once its nova-compute has removed what was built elsewhere
    cloud.wait_for(". /root/openstackrc && openstack compute service set --up compute2 nova-compute", timeout=300)
    cloud.wait_for(". /root/openstackrc && openstack hypervisor show compute2 -f value -c state | grep -q up")
    assert_pool_is_whole(second)
    second.wait_for('test -z "$(virsh -q list --all --name)"', timeout=180)
    assert_in_pool(host, cloud.server("mover")["id"], SERVER_MIB)
    openstack(cloud, "server delete --wait mover")
    assert_pool_is_whole(host)
