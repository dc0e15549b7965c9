# SPDX-License-Identifier: GPL-2.0-or-later
"""Arithmetic of address ranges, held against sets of numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_dmem.errors import UsageError
from virt_dmem.host.ram.ranges import Range, common, merged, parse_range, take, total, whole, without

RANGES = st.lists(st.builds(Range, st.integers(0, 120), st.integers(0, 30)), max_size=6)


def numbers(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {number for item in ranges for number in range(item.start, item.end)}


@given(RANGES, RANGES)
def test_ranges_are_sets_of_bytes(one: list[Range], other: list[Range]) -> None:
    assert numbers(merged(one)) == numbers(one)
    assert total(one) == len(numbers(one))
    assert numbers(without(one, other)) == numbers(one) - numbers(other)
    assert numbers(common(one, other)) == numbers(one) & numbers(other)
    for found in (merged(one), without(one, other), common(one, other)):
        assert all(item.size > 0 for item in found)
        assert all(before.end < after.start for before, after in itertools.pairwise(found))


@given(RANGES, st.sampled_from([1, 2, 4, 16]))
def test_whole_pieces_are_aligned_and_all_there_are(ranges: list[Range], unit: int) -> None:
    pieces = {at for at in range(0, 160, unit) if set(range(at, at + unit)) <= numbers(ranges)}
    assert numbers(whole(ranges, unit)) == {number for at in pieces for number in range(at, at + unit)}


@given(RANGES, st.integers(0, 12), st.sampled_from([1, 4, 8]))
def test_what_is_taken_is_whole_there_and_of_the_size_asked_for(ranges: list[Range], count: int, unit: int) -> None:
    taken = take(ranges, count * unit, unit)
    if taken is None:
        assert total(whole(ranges, unit)) < count * unit
        return
    assert sum(item.size for item in taken) == total(taken) == count * unit
    assert numbers(taken) <= numbers(whole(ranges, unit))
    assert all(item.start % unit == 0 for item in taken)
    if any(item.size >= count * unit for item in whole(ranges, unit)):
        assert len(taken) <= 1


@pytest.mark.parametrize("text", ["0x80000000+1G", "2G+0x40000000", "2048M+1024M", "2147483648+1G"])
def test_a_range_can_be_written_in_many_ways(text: str) -> None:
    found = parse_range(text)
    assert found == Range(2 << 30, 1 << 30)
    assert parse_range(str(found)) == found


@pytest.mark.parametrize("text", ["", "1G", "+1G", "1G+", "1G+x", "1G-2G", "-1+1", "1.5G+1G", "0x+1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of bytes"):
        parse_range(text)
