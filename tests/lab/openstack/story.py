# SPDX-License-Identifier: GPL-2.0-or-later
"""Run servers of a real nova on a pool, with nova unchanged; one story, in this order. ``make fleet`` runs it."""

from __future__ import annotations

import json
import shlex
import time
from datetime import datetime

from tests.lab import guests
from tests.lab.container import Container
from tests.lab.openstack.cloud import (
    POOL_MIB,
    SERVER_MIB,
    assert_in_pool,
    assert_pool_is_whole,
    create,
    openstack,
    server,
    wait_for_status,
)


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
    print(f"from 'server create' to an active server, as the client sees it: {time.monotonic() - began:.1f} s")
    assert made["status"] == "ACTIVE", made
    created, launched = (datetime.fromisoformat(made[key][:19]) for key in ("created", "OS-SRV-USG:launched_at"))
    print(f"as nova sees it: {(launched - created).total_seconds():.0f} s")
    assert_in_pool(host, made["id"], SERVER_MIB)
    name = made["OS-EXT-SRV-ATTR:instance_name"]
    assert "nova" in host.run(f"virt-dmem rules {name}").stdout
    print(host.run(f"virt-dmem show {name} --timing").stdout)


def test_a_server_that_cannot_fit_is_refused_by_the_scheduler(host: Container) -> None:
    made = create(host, "giant", "huge")
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ERROR", None), made
    print(made["fault"]["message"])
    openstack(host, "server delete --wait giant")
    assert len(host.run("virsh -q list --all --name").stdout.split()) == 1


def test_a_start_that_the_pool_refuses_leaves_nothing_behind(host: Container) -> None:
    """Something else took room of the pool that nova does not know of."""
    other = guests.define(host, "other", cells=(f"{POOL_MIB - SERVER_MIB}MiB",), kind="qemu")
    host.run("virsh -q start other --paused")
    made = create(host, "unlucky", "small")
    assert made["status"] == "ERROR"
    print(made["fault"]["message"])
    print(host.run("grep -h not-enough-memory /var/log/nova/nova-compute.log | tail -n 1", check=False).stdout)
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


def test_a_stopped_server_whose_room_is_taken_starts_when_there_is_room_again(host: Container) -> None:
    openstack(host, "server stop one")
    uuid = wait_for_status(host, "one", "SHUTOFF")["id"]
    guests.define(host, "other", cells=(f"{POOL_MIB}MiB",), kind="qemu")
    host.run("virsh -q start other --paused")
    openstack(host, "server start one", check=False)
    assert wait_for_status(host, "one", "SHUTOFF")["id"] == uuid
    print(openstack(host, "server event list --long one")[0])
    host.run("virsh -q destroy other && virsh -q undefine other")
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
