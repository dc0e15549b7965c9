# SPDX-License-Identifier: GPL-2.0-or-later
"""What an elastic pool may take, on a fake tree: by its limit, by what the host keeps, by node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import PAGE, elastic_record
from tests.rig.fake_tree import BOOT, fake_tree
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolShort
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits, HugetlbfsRecord
from virt_dmem.pools.elastic.room import Room, elasticity_of, limits_of, room_of
from virt_dmem.units import GIB

CONFIG = Config()


def room(tmp_path: Path, limits: ElasticLimits, *segments: HugetlbfsRecord, nodes: int = 2) -> Room:
    """Return the room on a host that has 12 GiB of 16 available, and as many by node, evenly."""
    return room_of(segments, limits, root=fake_tree(tmp_path, memory=[16 * GIB // nodes] * nodes))


def first(limits: ElasticLimits, **nodes: int) -> HugetlbfsRecord:
    return elastic_record(CONFIG, "p", {0: 0, 1: 0} | nodes, boot_id=BOOT, limits=limits)  # type: ignore[arg-type]


def test_a_pool_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    limits = ElasticLimits(4 * GIB, 0, GIB, 0)
    one = elastic_record(CONFIG, "p+1", {0: GIB}, boot_id=BOOT, limits=limits)
    found = room(tmp_path, limits, first(limits), one)
    assert (found.has_bytes, found.most_bytes) == (GIB, 3 * GIB)
    assert found.nodes == {0: 3 * GIB, 1: 3 * GIB}


def test_what_is_about_to_be_taken_counts_already(tmp_path: Path) -> None:
    limits = ElasticLimits(4 * GIB, 0, GIB, 0)
    one = elastic_record(CONFIG, "p+1", {0: GIB}, boot_id=BOOT, limits=limits, state="creating")
    one.nodes[0].got_bytes = 0
    assert room(tmp_path, limits, first(limits), one).most_bytes == 3 * GIB


def test_what_was_taken_before_the_boot_is_gone(tmp_path: Path) -> None:
    limits = ElasticLimits(4 * GIB, 0, GIB, 0)
    old = elastic_record(CONFIG, "p+1", {0: GIB}, boot_id="another", limits=limits)
    assert room(tmp_path, limits, first(limits), old).most_bytes == 4 * GIB


def test_the_host_keeps_what_it_is_to_keep(tmp_path: Path) -> None:
    limits = ElasticLimits(64 * GIB, 0, 10 * GIB, 0)
    found = room(tmp_path, limits, first(limits))
    assert (found.most_bytes, found.nodes) == (2 * GIB, {0: 2 * GIB, 1: 2 * GIB})


def test_a_node_gives_what_it_has_available(tmp_path: Path) -> None:
    limits = ElasticLimits(64 * GIB, 0, GIB, 0)
    found = room(tmp_path, limits, first(limits))
    assert found.nodes == {0: 6 * GIB, 1: 6 * GIB}
    assert found.most_bytes == 11 * GIB


def test_a_node_that_the_pool_does_not_use_gives_nothing(tmp_path: Path) -> None:
    limits = ElasticLimits(64 * GIB, 0, GIB, 0)
    only = elastic_record(CONFIG, "p", {1: 0}, boot_id=BOOT, limits=limits)
    assert room(tmp_path, limits, only).nodes == {1: 6 * GIB}


def test_a_pool_beyond_its_limit_takes_nothing(tmp_path: Path) -> None:
    limits = ElasticLimits(GIB, 0, 15 * GIB, 0)
    found = room(tmp_path, limits, first(limits))
    assert (found.most_bytes, found.nodes) == (0, {0: 0, 1: 0})


@pytest.mark.parametrize(
    ("limits", "wanted", "what"),
    [
        (ElasticLimits(GIB, 0, GIB, 0), {0: GIB + PAGE}, "larger --max"),
        (ElasticLimits(64 * GIB, 0, 10 * GIB, 0), {0: 3 * GIB}, "--keep-free"),
        (ElasticLimits(64 * GIB, 0, GIB, 0), {0: 7 * GIB}, "other nodes"),
    ],
)
def test_a_refusal_says_what_there_is_and_what_to_do(
    tmp_path: Path, limits: ElasticLimits, wanted: dict[int, int], what: str
) -> None:
    found = room(tmp_path, limits, first(limits))
    with pytest.raises(
        PoolShort, match=r"can be taken now \(node 0: .*, node 1: .*; it has 0 B of at most"
    ) as caught:
        found.require("p", wanted)
    assert what in caught.value.hint
    found.require("p", {0: PAGE, 1: PAGE})


def test_a_fixed_pool_has_no_limits(tmp_path: Path) -> None:
    fixed = elastic_record(CONFIG, "p")
    fixed.elastic = None
    assert limits_of(fixed) is None
    assert elasticity_of([fixed]) is None
    shown = elasticity_of([first(ElasticLimits(4 * GIB, 0, GIB, 7))], root=fake_tree(tmp_path))
    assert shown is not None
    assert (shown.max_bytes, shown.linger_seconds, shown.room_bytes) == (4 * GIB, 7, 4 * GIB)
