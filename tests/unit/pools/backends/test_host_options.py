# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify the parts from which the options of a host are made; ``test_host_planning`` has whole plans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_dmem.pools.backends.host_options import (
    HostFacts,
    Probe,
    by_node_options,
    exact_size,
    host_option,
    per_node,
    shares,
)
from virt_dmem.units import GIB, KIB, MIB, parse_size


def facts(*nodes: int, **more: dict[str, Probe]) -> HostFacts:
    return HostFacts(dict.fromkeys(nodes, GIB), (2 * MIB,), hvo=None, cma_bytes=None, **more)


@given(
    units=st.integers(0, 1000),
    unit=st.sampled_from([2 * MIB, GIB]),
    nodes=st.sets(st.integers(0, 9), min_size=1, max_size=5),
)
def test_a_size_is_spread_evenly_in_whole_pages_and_no_node_is_named_for_none(
    units: int, unit: int, nodes: set[int]
) -> None:
    found = shares(units * unit, unit, facts(*nodes))
    assert sum(found.values()) == units * unit
    counts = [found.get(node, 0) // unit for node in sorted(nodes)]
    assert counts == sorted(counts, reverse=True), "as 'pool create --size' does it"
    assert counts[0] - counts[-1] <= 1
    assert 0 not in found.values()


@pytest.mark.parametrize(
    ("found", "value", "options"),
    [
        ({0: 4 * MIB}, "4M", "--node 0=4M"),
        ({1: 4 * MIB}, "1:4M", "--node 1=4M"),
        ({0: GIB, 2: 2 * MIB}, "0:1G,2:2M", "--node 0=1G --node 2=2M"),
    ],
)
def test_a_parameter_names_the_nodes_unless_all_memory_is_of_node_0(
    found: dict[int, int], value: str, options: str
) -> None:
    assert per_node(found, exact_size) == value
    assert by_node_options(found) == options


@given(size=st.integers(1, 1 << 50) | st.integers(1, 1 << 12).map(lambda number: number * MIB))
def test_an_exact_size_is_read_as_the_same_size(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def test_an_exact_size_has_the_largest_unit() -> None:
    assert [exact_size(size) for size in (1536 * MIB, 2 * GIB, 3 * KIB, 4097)] == ["1536M", "2G", "3K", "4097"]


def test_what_is_saved_and_what_is_left_make_up_all_struct_pages() -> None:
    option = host_option("dmemfs", 64 * MIB, 2 * MIB, left=4096, notes=["note"])
    assert (option.gross_bytes, option.metadata_left_bytes, option.net_bytes) == (MIB, 4096, MIB - 4096)
    assert option.notes == ("note",)


def test_a_backend_that_was_not_probed_is_not_available() -> None:
    known = facts(0, probes={"tmpfs": Probe(available=True)})
    assert known.probe("tmpfs").available
    assert known.probe("dmemfs") == Probe(available=False, reason="support for dmemfs was not found")
