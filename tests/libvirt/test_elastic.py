# SPDX-License-Identifier: GPL-2.0-or-later
"""Elastic pools, with guests: pages are taken at a start, linger, and go back; kills leave none unaccounted for."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import checked, reserved, virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.killed_daemon import killed_before_every_step
from tests.rig.page_service import PageService
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for
from virt_dmem.host import huge_pages, kernel

pytestmark = pytest.mark.needs_hugepages

MIB = 1 << 20
PAGE = 2 * MIB
GUEST = 32
"""Pages of a guest of 64 MiB."""


class Host:
    """The elastic pool ``guests`` of at most 160 MiB, and its parts."""

    def __init__(self, libvirtd: PrivateLibvirt, daemon: Daemon, pages: PageService) -> None:
        self.libvirtd, self.daemon, self.pages = libvirtd, daemon, pages
        self.before = huge_pages.counters(PAGE).pages

    def create(self, *args: str, most: str = "160M", linger: str = "1h") -> None:
        virt_dmem("pool", "create", "guests", "--elastic", "--max", most, "--linger", linger, *args)

    def define(self, *names: str) -> None:
        for name in names:
            self.libvirtd.define(domain_xml(name))
            virt_dmem("apply", name, "--pool", "guests")

    def start(self, name: str) -> None:
        self.libvirtd.virsh("start", "--paused", name)

    def refused(self, name: str) -> str:
        with pytest.raises(RigError) as caught:
            self.start(name)
        return str(caught.value)

    def stop(self, name: str) -> None:
        self.libvirtd.virsh("destroy", name)
        wait_for("its memory to be free", lambda: name not in holders())

    @property
    def taken(self) -> int:
        return huge_pages.counters(PAGE).pages - self.before

    def wait_for_pages(self, pages: int) -> None:
        wait_for(f"{pages} huge pages instead of {self.taken}", lambda: self.taken == pages)

    def require_accounted(self) -> None:
        """The records account for every page, and reservations fit into them."""
        pool = shown()
        assert pool["capacity_bytes"] == self.taken * PAGE
        assert pool["reserved_bytes"] <= pool["capacity_bytes"]


def shown() -> dict[str, Any]:
    found: dict[str, Any] = virt_dmem_json("pool", "show", "guests")["pool"]
    return found


def holders() -> set[str]:
    return {domain["name"] for domain in virt_dmem_json("list")["domains"]}


@pytest.fixture
def host(libvirtd: PrivateLibvirt, daemon: Daemon, exclusive_hugepages: None) -> Iterator[Host]:
    with PageService() as pages:
        made = Host(libvirtd, daemon, pages)
        yield made
        if not daemon.program.running:
            daemon.start()
        if not pages.program.running:
            pages.start()
        libvirtd.remove()
        virt_dmem("reconcile")
        if virt_dmem_json("pool", "list")["pools"]:
            virt_dmem("pool", "destroy", "guests")
        assert made.taken == 0


def test_pages_come_with_a_guest_linger_for_the_next_and_go(host: Host) -> None:
    host.create(linger="5")
    assert (host.taken, shown()["state"], shown()["capacity_bytes"]) == (0, "ready", 0)
    assert shown()["elastic"]["max_bytes"] == 160 * MIB
    host.define("one", "two")
    assert checked()["domains"]["status"] == "PASS", "the pool has nothing yet, and may have enough"
    host.start("one")
    assert host.taken == GUEST
    host.require_accounted()
    assert reserved("guests") == 64 * MIB
    host.stop("one")
    host.start("two")
    assert host.taken == GUEST, "what lingers is used"
    host.stop("two")
    host.wait_for_pages(0)
    assert [segment["name"] for segment in shown()["segments"]] == ["guests"]
    host.start("one")
    assert host.taken == GUEST


def test_the_minimum_is_always_there_and_used_first(host: Host) -> None:
    host.create("--min", "64M", linger="0")
    assert host.taken == GUEST
    host.define("one", "two")
    host.start("one")
    assert host.taken == GUEST
    host.start("two")
    assert host.taken == 2 * GUEST
    host.stop("one")
    host.stop("two")
    host.wait_for_pages(GUEST)
    host.require_accounted()


def test_a_start_beyond_the_limits_is_refused_with_what_could_be_had(host: Host) -> None:
    host.create(most="96M")
    host.define("one", "two")
    host.start("one")
    said = host.refused("two")
    assert "asks elastic pool 'guests' for 64 MiB; 0 B of it is free" in said
    assert "32 MiB can be taken now (node 0: 32 MiB; it has 64 MiB of at most 96 MiB" in said
    assert host.taken == GUEST
    host.require_accounted()


def test_the_host_keeps_what_it_is_to_keep(host: Host) -> None:
    available = kernel.memory().available_bytes
    host.create("--keep-free", str(available * 2))
    host.define("one")
    said = host.refused("one")
    assert "0 B can be taken now" in said
    assert "--keep-free" in said
    assert host.taken == 0


def test_two_starts_at_once_never_take_the_same_room(host: Host) -> None:
    host.create(most="128M")
    names = ("one", "two", "three")
    host.define(*names)

    def refused(name: str) -> bool:
        try:
            host.start(name)
        except RigError as error:
            assert "at most 128 MiB" in str(error)
            return True
        return False

    with ThreadPoolExecutor(3) as threads:
        assert sorted(threads.map(refused, names)) == [False, False, True]
    assert host.taken == 2 * GUEST
    host.require_accounted()
    assert reserved("guests") == 128 * MIB


def test_a_start_that_fails_gives_back_what_it_took(host: Host, tmp_path: Path) -> None:
    host.daemon.restart_with_helper(tmp_path, "exit 1")
    host.create()
    host.define("one")
    host.refused("one")
    host.wait_for_pages(0)
    host.require_accounted()


def test_without_the_service_a_start_is_refused_in_words_and_what_is_there_still_serves(host: Host) -> None:
    host.create("--min", "64M")
    host.define("one", "two")
    host.pages.kill()
    host.start("one")
    assert "virt-dmem-pages, which takes and gives back huge pages, cannot be asked" in host.refused("two")
    host.require_accounted()


def test_a_killed_daemon_finds_what_was_taken_and_gives_it_back(host: Host) -> None:
    host.create(linger="2")
    host.define("one")
    host.start("one")
    pid = host.libvirtd.qemu_pids()["one"]
    host.daemon.kill()
    host.daemon.start()
    host.require_accounted()
    assert host.libvirtd.qemu_pids()["one"] == pid
    assert host.taken == GUEST
    host.stop("one")
    host.daemon.kill()
    host.daemon.start()
    host.wait_for_pages(0)


def test_a_daemon_killed_between_any_two_steps_of_a_start_leaves_every_page_accounted_for(
    host: Host, tmp_path: Path
) -> None:
    host.create(linger="1")
    host.define("one")

    def operate() -> None:
        host.libvirtd.virsh("start", "--paused", "one", check=False)

    def restore() -> None:
        host.require_accounted()
        host.libvirtd.virsh("destroy", "one", check=False)
        host.wait_for_pages(0)
        host.require_accounted()

    steps = killed_before_every_step(host.daemon, tmp_path / "mark", operate, restore, last="answer to started")
    print(f"{len(steps)} steps: {steps}")
    assert len(steps) >= 15


def test_a_service_killed_while_it_takes_pages_leaves_none_that_nobody_accounts_for(host: Host) -> None:
    """At moments of no choosing; tests/unit/pools/elastic/test_change_real.py kills it before each step."""
    host.create(linger="1")
    host.define("one")
    refused = 0
    for number in range(8):
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(host.libvirtd.virsh, "start", "--paused", "one", check=False)
            time.sleep(0.05 * number)
            host.pages.kill()
            host.pages.start()
            starting.result()
        refused += "one" not in host.libvirtd.qemu_pids()
        host.libvirtd.virsh("destroy", "one", check=False)
        host.wait_for_pages(0)
        host.require_accounted()
    print(f"{refused} of 8 starts were refused")


def test_a_destroyed_pool_gives_all_back_and_an_elastic_one_is_not_resized(host: Host) -> None:
    host.create()
    host.define("one")
    host.start("one")
    host.stop("one")
    assert "is elastic" in virt_dmem_fails("pool", "resize", "guests", "--size", "64M", status=1)
    virt_dmem("pool", "destroy", "guests")
    assert host.taken == 0


def test_pages_that_a_guest_gave_back_stay_its_own(host: Host) -> None:
    """Its segment's mount reserves them: neither other programs nor the pool's own give-back get them."""
    host.create(linger="0")
    host.define("one")
    host.start("one")
    (extent,) = virt_dmem_json("show", "one")["domain"]["extents"]
    subprocess.run(["fallocate", "--punch-hole", "--length", str(8 * PAGE), extent["path"]], check=True)
    counters = huge_pages.counters(PAGE)
    assert counters.reserved >= 8
    assert host.taken == GUEST
    host.require_accounted()
