# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that others chose is made safe to show."""

from __future__ import annotations

from virt_dmem.text import counted, printable


def test_a_name_cannot_control_the_terminal() -> None:
    assert printable("plain ünï") == "plain ünï"
    assert printable("\x1b[2J\x9b1m\u202eevil\n") == r"\x1b[2J\x9b1m\u202eevil\n"


def test_one_of_a_kind_is_not_many() -> None:
    assert [counted(number, "domain") for number in (0, 1, 2)] == ["0 domains", "1 domain", "2 domains"]
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]
