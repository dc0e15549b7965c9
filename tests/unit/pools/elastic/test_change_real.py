# SPDX-License-Identifier: GPL-2.0-or-later
"""Elastic pools on this machine's own huge pages: taken, given back, and killed before each step of both."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.killing_command import _arm
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.real_pools import HUGE, HVO, MIB, real_config, reboot, taken
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolBusy, PoolError, PoolShort
from virt_dmem.host import mounts, numa
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.pools.elastic import change
from virt_dmem.pools.resize import resize
from virt_dmem.pools.segment_id import SegmentId

pytestmark = pytest.mark.needs_hugepages

LEAST = 2 * HUGE
NODE = numa.nodes()[0].node
ONE = SegmentId("p+1")
MOST_STEPS = 80


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(Hugetlbfs, "step_bytes", 2 * HUGE)
    with real_config() as config:
        yield config


def created(config: Config, least: int = LEAST, most: int = 16 * HUGE) -> int:
    """Create an elastic pool ``p``; return the number of huge pages that the host had before."""
    before = taken()
    limits = ElasticLimits(most, least, 256 * MIB, 0)
    manage.create(config, "p", sizes=None, settings={"elastic": limits})
    assert taken() == before + least // HUGE
    return before


def segments(config: Config) -> list[str]:
    return [record.name for record in registry.records(config)]


@in_own_mount_namespace
def test_an_empty_pool_is_a_mount_without_pages(config: Config) -> None:
    before = created(config, least=0)
    (record,) = registry.records(config)
    assert os.statvfs(record.mount).f_blocks == 0
    assert sum(registry.capacity(record).values()) == 0
    manage.mount(config, "p")
    assert taken() == before
    manage.destroy(config, "p")
    assert not Path(record.mount).exists()


@in_own_mount_namespace
def test_pages_are_taken_for_a_segment_of_its_own_and_given_back_with_it(config: Config) -> None:
    before = created(config)
    heard: list[int] = []
    assert change.take(config, "p", {NODE: 4 * HUGE}, report=lambda _doing, done, _total: heard.append(done)) == ONE
    assert taken() == before + 6
    assert heard[-1] == 4 * HUGE
    (_, one) = registry.records(config)
    found = mounts.mount_at(Path(one.mount))
    assert found is not None
    assert {f"size={4 * HUGE}", f"min_size={4 * HUGE}"} <= set(found.options.split(","))  # nobody else gets them
    assert change.take(config, "p", {NODE: 2 * HUGE}) == SegmentId("p+2")
    change.give_back(config, ONE)
    assert segments(config) == ["p", "p+2"]
    assert taken() == before + 4
    assert change.take(config, "p", {NODE: HUGE}) == ONE
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text()) == (before, "0\n")


@in_own_mount_namespace
def test_no_more_is_taken_than_the_record_allows_and_nothing_is_left_of_what_was_refused(config: Config) -> None:
    before = created(config)
    change.take(config, "p", {NODE: 10 * HUGE})
    with pytest.raises(PoolShort, match="at most 32 MiB"):
        change.take(config, "p", {NODE: 5 * HUGE})
    assert segments(config) == ["p", "p+1"]
    assert taken() == before + 12


@in_own_mount_namespace
def test_a_segment_that_is_used_is_not_given_back(config: Config) -> None:
    before = created(config)
    change.take(config, "p", {NODE: 4 * HUGE})
    file = config.pools_dir / "p+1" / "libvirt-x"
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, HUGE)
        with pytest.raises(PoolBusy):
            change.give_back(config, ONE)
    with pytest.raises(PoolBusy):  # its file is still there
        change.give_back(config, ONE)
    assert taken() == before + 6
    file.unlink()
    change.give_back(config, ONE)
    assert taken() == before + 2


@in_own_mount_namespace
def test_an_elastic_pool_is_not_resized(config: Config) -> None:
    created(config)
    with pytest.raises(PoolError, match="is elastic"):
        resize(config, "p", sizes=8 * HUGE, daemon=None)  # type: ignore[arg-type]


@in_own_mount_namespace
def test_after_a_boot_a_pool_has_what_it_always_has(config: Config) -> None:
    before = created(config)
    change.take(config, "p", {NODE: 4 * HUGE})
    reboot(config, "p")
    manage.mount(config, "p")
    assert segments(config) == ["p"]
    assert taken() == before + 2


def killed_before(number: int, work: Callable[[], object], mark: Path) -> bool:
    """Run ``work`` in a process that is killed before its N-th step; return whether there was one."""
    mark.write_text("")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _arm(number, mark, None)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == 0
    assert killed == bool(mark.read_text())
    return killed


@in_own_mount_namespace
def test_a_take_killed_before_any_step_leaves_no_page_that_nobody_accounts_for(config: Config) -> None:
    before = created(config)
    mark = Path(config.daemon.state_dir) / "mark"
    for number in range(MOST_STEPS):
        killed = killed_before(number, lambda: change.take(config, "p", {NODE: 4 * HUGE}), mark)
        recorded = sum(record.got_bytes for record in registry.records(config)) // HUGE
        whole = [record.name for record in registry.records(config) if record.state == "ready"]
        assert change.settle(config) == [], mark.read_text()
        if whole != ["p", "p+1"]:
            assert segments(config) == ["p"], mark.read_text()
            assert taken() == before + 2, (mark.read_text(), recorded)
        else:
            assert taken() == before + 6, mark.read_text()
            change.give_back(config, ONE)
        assert taken() == before + 2
        if not killed:
            assert number >= 10
            return
    raise AssertionError("the loop does not end")


@in_own_mount_namespace
def test_giving_back_killed_before_any_step_is_finished_later(config: Config) -> None:
    before = created(config)
    mark = Path(config.daemon.state_dir) / "mark"
    for number in range(MOST_STEPS):
        change.take(config, "p", {NODE: 4 * HUGE})
        killed = killed_before(number, lambda: change.give_back(config, ONE), mark)
        assert change.settle(config) == [], mark.read_text()
        change.give_back(config, ONE)
        assert segments(config) == ["p"], mark.read_text()
        assert taken() == before + 2, mark.read_text()
        if not killed:
            assert number >= 8
            return
    raise AssertionError("the loop does not end")
