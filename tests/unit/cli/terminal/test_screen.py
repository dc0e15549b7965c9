# SPDX-License-Identifier: GPL-2.0-or-later
"""Bars show every part that is there, and colours only where they are wanted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.command_line import HOSTILE
from virt_dmem.cli.terminal.screen import Screen

WIDTH = 20


@given(st.lists(st.integers(0, 1 << 60), min_size=1, max_size=4), st.integers(0, 1 << 62))
def test_a_bar_has_its_width_and_shows_each_part_that_is_there(sizes: list[int], whole: int) -> None:
    bar = Screen("never").bar(
        [(size, mark, "red") for size, mark in zip(sizes, "abcd", strict=False)], whole, WIDTH
    )
    assert re.fullmatch(r"\[a*b*c*d*·*\]", bar)
    assert len(bar) == WIDTH + 2
    for size, mark in zip(sizes, "abcd", strict=False):
        assert (mark in bar) == (size > 0)
    assert ("·" in bar) == (whole > sum(sizes) or not sum(sizes))


def test_parts_are_in_proportion() -> None:
    assert Screen("never").bar([(50, "#", ""), (25, "+", "")], 100, WIDTH) == "[##########+++++·····]"


@pytest.mark.parametrize(
    ("color", "no_color", "painted"), [("always", "1", True), ("never", "", False), ("auto", "", False)]
)
def test_colours_follow_what_was_asked_for(
    color: str, no_color: str, painted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[31m" in Screen(color).paint("text", "red")) == painted


def test_untrusted_text_cannot_paint_by_itself() -> None:
    assert Screen("always").paint(HOSTILE, "").isprintable()
    assert "\x1b" not in Screen("always").paint(HOSTILE, "red")[5:-4]
