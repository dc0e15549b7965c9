# SPDX-License-Identifier: GPL-2.0-or-later
"""Run servers of a real nova on a pool, with nova unchanged; one story, in this order. ``make fleet`` runs it."""

from __future__ import annotations

import time
from datetime import datetime

from tests.lab import guests
from tests.lab.host import Host
from tests.lab.openstack.cloud import (
    POOL_MIB,
    SERVER_MIB,
    Cloud,
    assert_in_pool,
    assert_pool_is_whole,
    create,
    memory_inventory,
    openstack,
    pids_of,
    wait_for_guest,
    wait_for_status,
)


def domains(host: Host) -> list[str]:
    return host.run("virsh -q list --all --name").stdout.split()


def take_room(host: Host, mib: int) -> str:
    """Have something take room of the pool that nova does not know of."""
    uuid = guests.define(host, "other", cells=(f"{mib}MiB",), kind="qemu")
    host.run("virsh -q start other --paused", timeout=300)
    return uuid


def give_room_back(host: Host) -> None:
    host.run("virsh -q destroy other && virsh -q undefine other")


def test_what_the_scheduler_may_give_is_the_pool(cloud: Cloud, host: Host) -> None:
    found = memory_inventory(cloud)
    assert (found["total"], found["reserved"], found["allocation_ratio"]) == (POOL_MIB, 0, 1.0)
    (pool,) = host.json("virt-dmem pool list --json")["pools"]
    assert pool["capacity_bytes"] == POOL_MIB << 20


def test_a_server_is_adopted_and_runs_with_its_memory_from_the_pool(cloud: Cloud, host: Host) -> None:
    began = time.monotonic()
    made = create(cloud, "one", "small")
    print(f"from 'server create' to an active server, as the client sees it: {time.monotonic() - began:.1f} s")
    assert made["status"] == "ACTIVE", made
    created, launched = (datetime.fromisoformat(made[key][:19]) for key in ("created", "OS-SRV-USG:launched_at"))
    print(f"as nova sees it: {(launched - created).total_seconds():.0f} s")
    assert_in_pool(host, made["id"], SERVER_MIB)
    wait_for_guest(host, made["id"])
    name = made["OS-EXT-SRV-ATTR:instance_name"]
    assert host.json(f"virt-dmem rules {name} --json")["outcome"] == "adopted"
    print(host.run(f"virsh -q dumpxml {name} --xpath /domain/@type; virt-dmem show {name} --timing").stdout)
    print(host.run("dpkg-query -W nova-compute libvirt-daemon qemu-system-x86; uname -r").stdout)


def test_a_server_that_cannot_fit_is_refused_by_the_scheduler(cloud: Cloud, host: Host) -> None:
    made = create(cloud, "giant", "huge")
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ERROR", None), made
    print(made["fault"]["message"])
    openstack(cloud, "server delete --wait giant")
    assert domains(host) == ["instance-00000001"]


def test_a_start_that_the_pool_refuses_leaves_nothing_behind(cloud: Cloud, host: Host) -> None:
    other = take_room(host, POOL_MIB - SERVER_MIB)
    made = create(cloud, "unlucky", "small")
    assert made["status"] == "ERROR"
    print(made["fault"]["message"])
    print(host.run("grep -h not-enough-memory /var/log/nova/nova-compute.log | tail -n 1", check=False).stdout)
    openstack(cloud, "server delete --wait unlucky")
    assert sorted(domains(host)) == ["instance-00000001", "other"]
    give_room_back(host)
    assert_in_pool(host, cloud.server("one")["id"], SERVER_MIB)
    assert other not in host.run("virt-dmem list --json").stdout


def test_a_hard_reboot_makes_the_xml_anew_and_the_memory_comes_from_the_pool(cloud: Cloud, host: Host) -> None:
    uuid = cloud.server("one")["id"]
    before = pids_of(host, uuid)
    openstack(cloud, "server reboot --hard --wait one")
    assert pids_of(host, uuid) != before
    assert_in_pool(host, uuid, SERVER_MIB)
    wait_for_guest(host, uuid)


def test_what_is_stopped_holds_nothing_and_what_is_started_again_has_its_memory(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server stop one")
    uuid = wait_for_status(cloud, "one", "SHUTOFF")["id"]
    assert_pool_is_whole(host)
    openstack(cloud, "server start one")
    wait_for_status(cloud, "one", "ACTIVE")
    assert_in_pool(host, uuid, SERVER_MIB)
    wait_for_guest(host, uuid)


def test_a_stopped_server_whose_room_is_taken_starts_when_there_is_room_again(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server stop one")
    uuid = wait_for_status(cloud, "one", "SHUTOFF")["id"]
    take_room(host, POOL_MIB)
    openstack(cloud, "server start one", check=False)
    assert wait_for_status(cloud, "one", "SHUTOFF")["id"] == uuid
    print(openstack(cloud, "server event list --long one")[0])
    give_room_back(host)
    openstack(cloud, "server start one")
    wait_for_status(cloud, "one", "ACTIVE")
    assert_in_pool(host, uuid, SERVER_MIB)


def test_restarts_of_nova_compute_libvirtd_and_the_daemon_change_nothing(cloud: Cloud, host: Host) -> None:
    uuid = cloud.server("one")["id"]
    before = pids_of(host, uuid)
    host.run("systemctl restart virt-dmemd libvirtd nova-compute", timeout=300)
    host.wait_for("virt-dmem list --json")
    assert cloud.server("one")["status"] == "ACTIVE"
    assert pids_of(host, uuid) == before
    assert_in_pool(host, uuid, SERVER_MIB)


def test_a_resized_server_has_the_memory_of_its_new_flavor(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server resize --flavor larger --wait one")
    uuid = wait_for_status(cloud, "one", "VERIFY_RESIZE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)
    wait_for_guest(host, uuid)
    openstack(cloud, "server resize confirm one")
    wait_for_status(cloud, "one", "ACTIVE")
    assert_in_pool(host, uuid, 2 * SERVER_MIB)


def test_a_server_in_rescue_and_after_it_has_its_memory_from_the_pool(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server rescue one")
    uuid = wait_for_status(cloud, "one", "RESCUE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)
    openstack(cloud, "server unrescue one")
    wait_for_status(cloud, "one", "ACTIVE")
    assert_in_pool(host, uuid, 2 * SERVER_MIB)


def test_a_shelved_server_holds_nothing_and_comes_back(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server shelve one")
    wait_for_status(cloud, "one", "SHELVED_OFFLOADED")
    assert_pool_is_whole(host)
    openstack(cloud, "server unshelve one")
    uuid = wait_for_status(cloud, "one", "ACTIVE")["id"]
    assert_in_pool(host, uuid, 2 * SERVER_MIB)
    wait_for_guest(host, uuid)


def test_a_deleted_server_gives_all_back(cloud: Cloud, host: Host) -> None:
    openstack(cloud, "server delete --wait one")
    assert_pool_is_whole(host)
    assert domains(host) == []
    assert host.json("virt-dmem alerts --json")["alerts"] == []
