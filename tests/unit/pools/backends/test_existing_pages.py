# SPDX-License-Identifier: GPL-2.0-or-later
"""Make a pool of huge pages that the host has already, as if set aside at boot: on this machine's own kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, GIB, fake_tree, put
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.no_daemon import NoDaemon
from tests.rig.real_pools import (
    HUGE,
    SIZE,
    kill_at,
    killed,
    lose,
    lower,
    no_spare_pages,
    real_config,
    reboot,
    taken,
)
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolShort
from virt_dmem.host import huge_pages, numa
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare
from virt_dmem.pools.resize import resize
from virt_dmem.pools.savings import savings

EXISTING = {"existing": True}


@pytest.fixture
def config() -> Iterator[Config]:
    """A host with 16 free huge pages of its own."""
    node = numa.nodes()[0].node
    with real_config() as config, no_spare_pages():
        huge_pages.set_persistent(HUGE, node, huge_pages.counters(HUGE, node).persistent + 16)
        try:
            yield config
            for pool in {record.pool for record in registry.records(config)}:
                manage.destroy(config, pool)
        finally:
            huge_pages.set_persistent(HUGE, node, huge_pages.counters(HUGE, node).persistent - 16)


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_a_pool_of_the_hosts_own_pages_takes_none_and_leaves_them_to_the_host(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE, settings=EXISTING)
    assert taken() == before
    assert sum(registry.capacity(record).values()) == SIZE
    assert not savings(config)[0].measured
    manage.destroy(config, "p")
    assert taken() == before
    assert huge_pages.counters(HUGE).free >= 16


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_what_the_host_has_not_is_allocated_and_only_that_is_given_back(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE + 8 * HUGE, settings=EXISTING)
    assert taken() == before + 8
    assert isinstance(record, HugetlbfsRecord)
    assert sum(record.of_host.values()) == SIZE
    resize(config, "p", sizes=SIZE + 4 * HUGE, daemon=NoDaemon())
    assert taken() == before + 4
    resize(config, "p", sizes=8 * HUGE, daemon=NoDaemon())
    assert taken() == before
    resize(config, "p", sizes=10 * HUGE, daemon=NoDaemon())  # by a segment, of pages that the host has again
    assert taken() == before
    manage.destroy(config, "p")
    assert taken() == before


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_pages_that_others_hold_are_not_taken(config: Config) -> None:
    before = taken()
    manage.create(config, "a", sizes=10 * HUGE, settings=EXISTING)
    (config.pool_records_dir / "a.json").rename(config.pool_records_dir / "a")  # a mount like that of others
    manage.create(config, "b", sizes=SIZE, settings=EXISTING)
    assert taken() == before + 10
    manage.destroy(config, "b")
    assert taken() == before
    (config.pool_records_dir / "a").rename(config.pool_records_dir / "a.json")


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_pages_of_a_pool_that_is_not_mounted_are_not_taken(config: Config) -> None:
    before = taken()
    record = manage.create(config, "a", sizes=10 * HUGE, settings=EXISTING)
    subprocess.run(["umount", record.mount], check=True)
    manage.create(config, "b", sizes=SIZE, settings=EXISTING)
    assert taken() == before + 10
    manage.mount(config, "a")


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_without_the_option_new_pages_are_allocated(config: Config) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    assert taken() == before + 16


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_they_are_taken_again_after_a_boot(config: Config) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE, settings=EXISTING)
    reboot(config, "p")
    record = manage.mount(config, "p")
    assert record is not None
    assert sum(registry.capacity(record).values()) == SIZE
    assert taken() == before


@pytest.mark.needs_hugepages
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("undo", [manage.destroy, manage.mount])
@in_own_mount_namespace
def test_a_create_that_was_killed_leaves_them_to_the_host(
    config: Config, at: int, undo: Callable[[Config, str], object]
) -> None:
    before = taken()
    killed(lambda: manage.create(config, "p", sizes=SIZE + 4 * HUGE, settings=EXISTING, report=kill_at(at)))
    undo(config, "p")
    assert taken() == before
    assert registry.records(config) == []


@pytest.mark.needs_hugepages
@in_own_mount_namespace
def test_a_lowered_number_takes_no_more_from_the_host_than_was_lowered(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE, settings=EXISTING)
    lower(16)
    lose(record, 4)
    manage.mount(config, "p")
    assert taken() == before
    manage.destroy(config, "p")
    assert taken() == before


# On a fake tree: a host with pages of 1 GiB set aside at boot


def gib_pages(root: Path, free: int, command_line: str) -> Path:
    fake_tree(root, memory=(16 * GIB,))
    put(root / "proc/cmdline", f"quiet {command_line}\n")
    for base in ("sys/kernel/mm/hugepages", "sys/devices/system/node/node0/hugepages"):
        for name in ("nr", "free"):
            put(root / base / f"hugepages-1048576kB/{name}_hugepages", f"{free}\n")
    put(root / "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 500 kB\n")
    return root


def job(root: Path, pages: int, *, existing: bool) -> Job[HugetlbfsRecord]:
    shares = {0: NodeShare(pages * GIB)}
    record = HugetlbfsRecord("p", "hugetlbfs", GIB, "/none/p", shares, boot_id=BOOT, existing=existing)
    return Job(record, (), lambda: None, lambda *_: None, root)


@pytest.mark.parametrize(
    ("command_line", "saved"),
    [
        ("hugetlb_free_vmemmap=on", 8 * (16 << 20) - 8 * 4096),
        ("hugetlb_free_vmemmap=on hugetlb_free_vmemmap=off", 0),
    ],
)
def test_pages_of_a_gibibyte_that_only_a_boot_provides_become_a_pool(
    tmp_path: Path, command_line: str, saved: int
) -> None:
    kind, wanted = backend("hugetlbfs"), job(gib_pages(tmp_path, 8, command_line), 8, existing=True)
    kind.check(wanted)
    kind.acquire(wanted)
    record = wanted.record
    assert (record.got_bytes, record.of_host, record.saved_bytes) == (8 * GIB, {0: 8 * GIB}, saved)
    assert huge_pages.counters(GIB, 0, root=tmp_path).persistent == 8
    assert kind.release(wanted) == 0
    assert (record.got_bytes, huge_pages.counters(GIB, 0, root=tmp_path).persistent) == (0, 8)


def test_whoever_does_not_know_the_option_is_told(tmp_path: Path) -> None:
    with pytest.raises(PoolShort, match="are available") as refusal:
        backend("hugetlbfs").check(job(gib_pages(tmp_path, 8, ""), 8, existing=False))
    assert "8 GiB of node 0" in refusal.value.hint
    assert "--existing-pages" in refusal.value.hint
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path)))
    assert registry.records(config) == []
