# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody lowers vm.nr_hugepages under a pool: on this machine's own kernel, without a daemon that repairs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.no_daemon import NoDaemon
from tests.rig.real_pools import HUGE, SIZE, lose, lower, no_spare_pages, real_config, taken
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolShort
from virt_dmem.host import huge_pages
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.resize import resize

pytestmark = pytest.mark.needs_hugepages


@pytest.fixture
def config() -> Iterator[Config]:
    with real_config() as config, no_spare_pages():
        yield config


def gone(config: Config) -> int:
    """Return the lost pages of all pools."""
    lost = page_counts.gone_by_segment(registry.records(config))
    return sum(size for by_node in lost.values() for size in by_node.values()) // HUGE


def no_more_than(pages: int) -> Callable[..., None]:
    """Return a kernel that has no more huge pages than so many: otherwise it is the real one."""
    real = huge_pages.set_persistent

    def stingy(page_size: int, node: int, wanted: int, *, root: Path) -> None:
        real(page_size, node, min(wanted, pages), root=root)

    return stingy


@in_own_mount_namespace
def test_pages_are_lost_one_by_one_as_they_are_freed(config: Config) -> None:
    record = manage.create(config, "p", sizes=SIZE)
    lower(16)
    assert gone(config) == 0
    lose(record, 3)
    assert gone(config) == 3
    (count,) = page_counts.compare(registry.records(config))
    page_counts.restore(count)
    assert gone(config) == 0
    lose(record, 16)  # all of them can be used again, and stay
    assert gone(config) == 0
    manage.destroy(config, "p")


@pytest.mark.parametrize("lost", [0, 3, 16])
@in_own_mount_namespace
def test_a_pool_that_lost_pages_is_destroyed(config: Config, lost: int) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE)
    lower(16)
    lose(record, lost) if lost else None
    manage.destroy(config, "p")
    assert registry.records(config) == []
    assert taken() == before


@in_own_mount_namespace
def test_pages_of_others_are_not_taken_for_those_that_were_lost(config: Config) -> None:
    """The host has as many pages of its own as the pool, and all are in use when their number is lowered."""
    before = taken()
    own = manage.create(config, "own", sizes=SIZE)  # a mount like that of others
    record = manage.create(config, "p", sizes=SIZE)
    (config.pool_records_dir / "own.json").rename(config.pool_records_dir / "own")
    lower(16)
    lose(record, 4)
    assert gone(config) == 4
    manage.destroy(config, "p")
    assert taken() == before + 16
    (config.pool_records_dir / "own").rename(config.pool_records_dir / "own.json")
    manage.destroy(config, own.name)
    assert taken() == before


@in_own_mount_namespace
def test_mounting_takes_again_what_was_lost(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE)
    lower(16)
    lose(record, 5)
    assert manage.mount(config, "p") == record
    assert gone(config) == 0
    assert taken() == before + 16
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_what_cannot_be_had_again_is_said_and_the_pool_stays_as_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE)
    lower(16)
    lose(record, 6)
    monkeypatch.setattr(huge_pages, "set_persistent", no_more_than(before + 10))
    for ask in (
        lambda: manage.mount(config, "p"),
        lambda: resize(config, "p", sizes=2 * SIZE, daemon=NoDaemon()),
        lambda: resize(config, "p", sizes=12 * HUGE, daemon=NoDaemon()),
    ):
        with pytest.raises(PoolShort, match=r"has only 20 MiB of its 32 MiB: somebody lowered .*vm\.nr_hugepages"):
            ask()
        (left,) = registry.records(config)
        assert left.state == "ready"
        assert os.statvfs(left.mount).f_bsize == HUGE
    resize(config, "p", sizes=8 * HUGE, daemon=NoDaemon())
    (small,) = registry.records(config)
    assert (small.state, small.got_bytes, gone(config)) == ("ready", 8 * HUGE, 0)
    assert os.statvfs(small.mount).f_blocks == 8
    assert taken() == before + 8
    manage.destroy(config, "p")
    assert taken() == before


@in_own_mount_namespace
def test_an_unmounted_pool_whose_pages_were_taken_is_mounted_with_new_ones(config: Config) -> None:
    if before := taken():
        return  # pages of others hide that those of a pool that is not mounted are gone
    record = manage.create(config, "p", sizes=SIZE)
    subprocess.run(["umount", record.mount], check=True)
    lower(16)
    manage.mount(config, "p")
    assert gone(config) == 0
    assert taken() == before + 16
    lose(record, 16)
    manage.destroy(config, "p")
    assert taken() == before


@in_own_mount_namespace
def test_resizing_a_pool_whose_number_was_lowered_keeps_its_pages(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE)
    lower(16)
    lose(record, 4)
    resize(config, "p", sizes=10 * HUGE, daemon=NoDaemon())
    assert taken() == before + 10
    lower(10)
    resize(config, "p", sizes=12 * HUGE, daemon=NoDaemon())
    assert taken() == before + 12
    assert gone(config) == 0
    manage.destroy(config, "p")
    assert taken() == before
