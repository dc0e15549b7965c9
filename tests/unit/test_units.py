# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and durations are read and shown as the command line documents them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_dmem.domain_xml.fields import read_size
from virt_dmem.errors import UsageError
from virt_dmem.units import (
    EIB,
    GIB,
    KIB,
    MIB,
    PIB,
    TIB,
    format_size,
    parse_duration,
    parse_number,
    parse_size,
    round_up,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64M", 64 * MIB), ("64MiB", 64 * MIB), (" 1 g ", GIB), ("2TiB", 2 * TIB), ("7kib", 7 * KIB)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_units_are_those_of_libvirt() -> None:
    """``virScaleInteger``: one letter and iB are powers of 1024, B after a prefix of 1000, in any case."""
    powers = {
        f"2{prefix}{unit}": 2 * base ** (power + 1)
        for power, prefix in enumerate("KMGTP")
        for unit, base in (("", 1024), ("iB", 1024), ("B", 1000))
    }
    powers |= {text.lower(): size for text, size in powers.items()}
    powers |= {"512B": 512, "512 bytes": 512, "512byte": 512, "7E": 7 * EIB}
    assert {text: parse_size(text) for text in powers} == powers
    assert {
        text: read_size(*re.fullmatch(r"(\d+) ?(\w+)", text).groups()) for text in powers if "7E" not in text
    } == {  # type: ignore[union-attr]
        text: round_up(size, KIB) for text, size in powers.items() if "7E" not in text
    }


def test_a_fraction_is_read_where_it_is_a_whole_number_of_bytes() -> None:
    assert [parse_size(text) for text in ("1.5G", "0.5 GiB", "2.25TB")] == [3 * GIB // 2, GIB // 2, 2_250 * 10**9]
    for text in ("1.3G", "0.5", "1.0001K"):
        with pytest.raises(UsageError, match="is not a whole number of bytes") as caught:
            parse_size(text)
        assert "1536M" in caught.value.hint


@pytest.mark.parametrize("text", ["", "0", "0.0G", "-1G", "1.G", ".5G", "1,5G", "G", "1 0M", "٣M", "1Kb/s"])
def test_what_is_no_size_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8E", "9999999T", "1" * 20, "9" * 5000, "50000000000000000000T"])
def test_a_size_that_no_file_can_have_is_too_large(text: str) -> None:
    with pytest.raises(UsageError, match="is too large"):
        parse_size(text)
    assert parse_size(f"{'0' * 5000}1K") == KIB


def test_a_number_is_read_as_the_kernel_does() -> None:
    assert [parse_number(text) for text in ("0", "0x80000000", "2G", "0x10K")] == [0, 2 * GIB, 2 * GIB, 16 * KIB]
    with pytest.raises(UsageError, match="'dmem=2X' is invalid: '2X' is not a number"):
        parse_number("2X", "dmem=2X")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600), ("2D", 172800)]
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "1w", "-5m", "1.5h", "forever"])
def test_what_is_no_duration_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(text)


def test_a_size_that_nothing_can_have_is_shown_by_its_magnitude() -> None:
    assert [format_size(size) for size in (9 * PIB, 2**63 - 1, 5 * 10**19 * TIB)] == [
        "9 PiB",
        "8.0 EiB",
        "4.8e+13 EiB",
    ]


def test_a_size_is_shown_exactly_or_with_one_decimal() -> None:
    sizes = (0, 1023, KIB, 1536 * KIB, 64 * MIB, GIB + 1, 3 * TIB, -2 * GIB)
    shown = ["0 B", "1023 B", "1 KiB", "1.5 MiB", "64 MiB", "1.0 GiB", "3 TiB", "-2 GiB"]
    assert [format_size(size) for size in sizes] == shown


@given(st.integers(1, 1023), st.sampled_from((KIB, MIB, GIB)))
def test_a_whole_size_is_read_back_as_shown(number: int, unit: int) -> None:
    assert parse_size(format_size(number * unit)) == number * unit


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 31))
def test_rounding_up_gives_the_nearest_multiple(size: int, multiple: int) -> None:
    rounded = round_up(size, multiple)
    assert rounded % multiple == 0
    assert size <= rounded < size + multiple
