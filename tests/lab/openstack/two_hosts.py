# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a server of a real nova between two hosts with pools; one story, in this order. ``make fleet`` runs it."""

from __future__ import annotations

import time

from tests.lab.container import Container
from tests.lab.openstack.cloud import (
    SERVER_MIB,
    assert_in_pool,
    assert_pool_is_whole,
    create,
    openstack,
    server,
    wait_for_status,
)


def test_a_server_migrates_live_from_pool_to_pool(host: Container, second: Container) -> None:
    made = create(host, "mover", "small", on="compute1")
    assert made["status"] == "ACTIVE", made
    began = time.monotonic()
    openstack(host, "server migrate --live-migration --host compute2 --wait mover")
    print(f"live migration, as the client sees it: {time.monotonic() - began:.0f} s")
    assert wait_for_status(host, "mover", "ACTIVE")["OS-EXT-SRV-ATTR:host"] == "compute2"
    assert_in_pool(second, made["id"], SERVER_MIB)
    assert_pool_is_whole(host)


def test_a_host_whose_pool_drains_rejects_what_migrates_there_and_it_runs_on(
    host: Container, second: Container
) -> None:
    host.run("virt-dmem pool drain guests")
    openstack(host, "server migrate --live-migration --host compute1 --wait mover", check=False)
    found = wait_for_status(host, "mover", "ACTIVE")
    assert found["OS-EXT-SRV-ATTR:host"] == "compute2"
    assert_in_pool(second, found["id"], SERVER_MIB)
    host.run("virt-dmem pool drain guests --undo")
    assert_pool_is_whole(host)


def test_a_server_whose_host_is_lost_is_built_anew_from_the_pool_of_another(
    host: Container, second: Container
) -> None:
    uuid = server(host, "mover")["id"]
    second.shut_down()
    openstack(host, "compute service set --down compute2 nova-compute")
    openstack(host, "server evacuate --host compute1 mover")
    wait_for_status(host, "mover", "SHUTOFF")  # as from microversion 2.95 on
    openstack(host, "server start mover")
    assert wait_for_status(host, "mover", "ACTIVE")["OS-EXT-SRV-ATTR:host"] == "compute1"
    assert_in_pool(host, uuid, SERVER_MIB)
    openstack(host, "server delete --wait mover")
    assert_pool_is_whole(host)
