# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that others chose is made safe to show."""

from __future__ import annotations

from virt_dmem.text import printable


def test_a_name_cannot_control_the_terminal() -> None:
    assert printable("plain ünï") == "plain ünï"
    assert printable("\x1b[2J\x9b1m\u202eevil\n") == r"\x1b[2J\x9b1m\u202eevil\n"
