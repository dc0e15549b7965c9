# SPDX-License-Identifier: GPL-2.0-or-later
"""A segment's identifier is its text, and knows pool and number."""

from __future__ import annotations

import pytest

from virt_dmem.ipc.connection import encoded
from virt_dmem.pools.segment_id import SegmentId


@pytest.mark.parametrize(("text", "pool", "number"), [("p", "p", 0), ("p+1", "p", 1), ("a-b.c+12", "a-b.c", 12)])
def test_it_is_its_text_and_knows_pool_and_number(text: str, pool: str, number: int) -> None:
    segment = SegmentId(text)
    assert (segment.pool, segment.number) == (pool, number)
    assert segment == text == str(segment) == f"{segment}"
    assert {segment: 1}[text] == 1  # type: ignore[index]
    assert SegmentId.of(pool, number) == segment
    assert [type(plain) for plain in (str(segment), segment.pool, SegmentId(pool).pool)] == [str] * 3


def test_it_is_sent_as_its_text() -> None:
    assert encoded({"pool": SegmentId("p+1")}) == b'{"pool":"p+1"}\0'
