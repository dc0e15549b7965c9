# SPDX-License-Identifier: GPL-2.0-or-later
"""Manage pools by the command, with a daemon and guests that use them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rig.command import virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError
from virt_dmem.host import huge_pages

MIB = 1 << 20
GIB = 1 << 30
PAGE = 2 * MIB


def pools() -> list[str]:
    return [pool["name"] for pool in virt_dmem_json("pool", "list")["pools"]]


def test_a_pool_in_use_is_not_destroyed_and_serves_on(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("holder"))
    virt_dmem("apply", "holder", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "holder")
    assert "holder" in virt_dmem_fails("pool", "destroy", tmpfs_pool, status=1)
    assert libvirtd.state("holder") == "paused"
    libvirtd.virsh("destroy", "holder")
    libvirtd.virsh("start", "--paused", "holder")
    assert virt_dmem_json("show", "holder")["domain"]["phase"] == "running"


def test_a_pool_stays_what_it_is_when_the_daemon_restarts(daemon: Daemon, tmpfs_pool: str) -> None:
    def shown() -> dict[str, object]:
        found = virt_dmem_json("pool", "show", tmpfs_pool)["pool"]
        return {
            key: value for key, value in found.items() if key != "ready_note"
        }  # of the host: whether it is busy

    before = shown()
    daemon.kill()
    daemon.start()
    assert shown() == before


def test_a_pool_that_is_there_is_not_made_again(daemon: Daemon, tmpfs_pool: str) -> None:
    said = virt_dmem_fails("pool", "create", tmpfs_pool, "--backend", "tmpfs", "--size", "64M", status=1)
    assert "small" in said
    assert virt_dmem_json("pool", "show", tmpfs_pool)["pool"]["capacity_bytes"] == 256 * MIB


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_a_pool_of_huge_pages_takes_its_pages_and_gives_back_exactly_these(daemon: Daemon) -> None:
    before = huge_pages.counters(PAGE).pages
    virt_dmem("pool", "create", "huge", "--size", "64M", "--page-size", "2M")
    try:
        shown = virt_dmem_json("pool", "show", "huge")["pool"]
        assert (shown["capacity_bytes"], shown["page_size"], shown["state"]) == (64 * MIB, PAGE, "ready")
        assert huge_pages.counters(PAGE).pages == before + 32
        assert huge_pages.counters(PAGE).reserved >= 32, "the kernel holds them for this mount"
        assert huge_pages.hvo() in (True, None)
    finally:
        virt_dmem("pool", "destroy", "huge")
    assert huge_pages.counters(PAGE).pages == before
    assert pools() == []
    assert not Path("/run/virt-dmem/pools/huge").exists()


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_a_guest_lives_on_a_page_of_1_gib(libvirtd: PrivateLibvirt, daemon: Daemon) -> None:
    before = huge_pages.counters(GIB).pages
    try:
        virt_dmem("pool", "create", "giant", "--size", "1G", "--page-size", "1G")
    except RigError as error:
        assert "status 5" in str(error)
        assert huge_pages.counters(GIB).pages == before
        assert pools() == []
        pytest.skip("this host's memory is in too many pieces for one page of 1 GiB")
    try:
        assert huge_pages.counters(GIB).pages == before + 1
        libvirtd.define(domain_xml("giant", memory="1GiB"))
        virt_dmem("apply", "giant", "--pool", "giant")
        libvirtd.virsh("start", "--paused", "giant")
        smaps = Path(f"/proc/{libvirtd.qemu_pids()['giant']}/smaps").read_text()
        assert re.search(r"^KernelPageSize: +1048576 kB$", smaps, re.MULTILINE)
        libvirtd.virsh("destroy", "giant")
    finally:
        libvirtd.remove()
        virt_dmem("pool", "destroy", "giant")
    assert huge_pages.counters(GIB).pages == before


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_a_pool_the_host_cannot_give_is_rolled_back_whole(daemon: Daemon) -> None:
    before = huge_pages.counters(PAGE).pages
    virt_dmem_fails("pool", "create", "toolarge", "--size", "64T", "--page-size", "2M", status=5)
    assert huge_pages.counters(PAGE).pages == before
    assert pools() == []
    assert not Path("/run/virt-dmem/pools/toolarge").exists()


@pytest.mark.needs_hugepages
def test_a_pool_of_huge_pages_is_resized_while_a_domain_runs_in_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    for name, memory in (("first", "96MiB"), ("second", "64MiB")):
        libvirtd.define(domain_xml(name, memory=memory))
        virt_dmem("apply", name, "--pool", hugetlbfs_pool)
    libvirtd.virsh("start", "--paused", "first")
    before = huge_pages.counters(PAGE).pages
    with pytest.raises(RigError, match="32 MiB is free"):
        libvirtd.virsh("start", "--paused", "second")

    (change,) = virt_dmem_json("pool", "resize", hugetlbfs_pool, "--size", "192M", "--dry-run")["changes"]
    assert (change["segment"], change["after"]) == ("huge+1", {"0": 64 * MIB})
    assert huge_pages.counters(PAGE).pages == before
    virt_dmem("pool", "resize", hugetlbfs_pool, "--size", "192M")
    assert huge_pages.counters(PAGE).pages == before + 32
    libvirtd.virsh("start", "--paused", "second")
    (extent,) = virt_dmem_json("show", "second")["domain"]["extents"]
    assert extent["pool"] == "huge"
    assert Path(extent["path"]).parents[1] == Path("/run/virt-dmem/pools/huge+1")
    shown = virt_dmem_json("pool", "show", hugetlbfs_pool)["pool"]
    assert (shown["capacity_bytes"], shown["reserved_bytes"]) == (192 * MIB, 160 * MIB)

    said = virt_dmem_fails("pool", "resize", hugetlbfs_pool, "--size", "128M", status=1)
    assert "domains hold 160 MiB" in said
    daemon.restart()
    libvirtd.virsh("destroy", "second")
    virt_dmem("pool", "resize", hugetlbfs_pool, "--size", "128M")
    assert huge_pages.counters(PAGE).pages == before, "freed pages return to the host"
    assert libvirtd.state("first") == "paused"
    assert virt_dmem_json("show", "first")["domain"]["reserved_bytes"] == 96 * MIB
    with pytest.raises(RigError, match="32 MiB is free"):
        libvirtd.virsh("start", "--paused", "second")


@pytest.mark.needs_tmpfs
def test_a_tmpfs_pool_is_resized_in_place_and_never_below_what_is_reserved(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("holder"))
    virt_dmem("apply", "holder", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "holder")
    assert "domains hold 64 MiB" in virt_dmem_fails("pool", "resize", tmpfs_pool, "--size", "60M", status=1)
    assert virt_dmem_json("pool", "show", tmpfs_pool)["pool"]["capacity_bytes"] == 256 * MIB
    for size in (64, 320):
        virt_dmem("pool", "resize", tmpfs_pool, "--size", f"{size}M")
        shown = virt_dmem_json("pool", "show", tmpfs_pool)["pool"]
        assert (shown["capacity_bytes"], shown["free_bytes"]) == (size * MIB, (size - 64) * MIB)


def test_a_pool_that_never_was_cannot_be_destroyed(daemon: Daemon) -> None:
    assert "'nothing'" in virt_dmem_fails("pool", "destroy", "nothing", status=1)


@pytest.mark.parametrize("name", ["../etc", "a b", "-x", "", "x" * 65, "ä"])
def test_a_name_that_could_be_a_trick_is_refused(daemon: Daemon, name: str) -> None:
    virt_dmem_fails("pool", "create", "--size=64M", "--backend=tmpfs", "--", name, status=2)
    assert pools() == []


def test_without_the_daemon_a_pool_is_made_and_listed_and_used_once_it_is_there(
    libvirtd: PrivateLibvirt, daemon: Daemon
) -> None:
    daemon.stop()
    virt_dmem("pool", "create", "early", "--backend", "tmpfs", "--size", "128M")
    assert pools() == ["early"]
    daemon.start()
    libvirtd.define(domain_xml("early"))
    virt_dmem("apply", "early", "--pool", "early")
    libvirtd.virsh("start", "--paused", "early")
    libvirtd.virsh("destroy", "early")
    virt_dmem("pool", "destroy", "early")
