# SPDX-License-Identifier: GPL-2.0-or-later
"""An extent's parts take from each node just its share, from any point of the file on."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from virt_dmem.allocation.models import Extent, ExtentState, Part
from virt_dmem.pools.segment_id import SegmentId

PAGE = 4096


def extent(policy: str, **pages: int) -> Extent:
    """Return an extent with shares in pages, of node ``n0`` and so on."""
    shares = {int(node[1:]): count * PAGE for node, count in pages.items()}
    size = sum(shares.values())
    return Extent(
        1,
        "uuid",
        "ram",
        SegmentId("p"),
        Path("/p/ram"),
        size,
        PAGE,
        policy,
        ExtentState.PLANNED,
        "boot",
        "",
        shares,
    )


@given(
    st.dictionaries(st.sampled_from(["n0", "n1", "n2"]), st.integers(1, 9), min_size=1),
    st.integers(0, 30),
    st.sampled_from(["bind", "preferred"]),
)
def test_parts_follow_each_other_with_each_node_s_share(pages: dict[str, int], first: int, policy: str) -> None:
    whole = extent(policy, **pages)
    start = min(first * PAGE, whole.size_bytes)
    at = start
    for part in whole.parts(start):
        assert part.offset_bytes == at
        assert part.policy == "bind"
        assert len(part.nodes) == 1
        at += part.size_bytes
    assert at == whole.size_bytes
    assert {part.nodes[0]: part.size_bytes for part in whole.parts()} == whole.shares


def test_what_is_interleaved_is_one_part() -> None:
    assert extent("interleave", n0=2, n1=2).parts(PAGE) == [Part(PAGE, 3 * PAGE, "interleave", (0, 1))]
