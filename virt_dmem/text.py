# SPDX-License-Identifier: GPL-2.0-or-later
"""Make untrusted text safe to show on a terminal, in a log, in an error."""

from __future__ import annotations

__all__ = ["clipped", "counted", "printable"]


def printable(text: str, *, keep: str = "") -> str:
    """Return ``text`` with everything a terminal could interpret (except ``keep``) as a backslash escape.

    These are the characters without a glyph in Unicode: C0 and C1 controls, bidirectional controls, characters
    of no width, separators of lines and paragraphs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def clipped(text: str, most: int) -> str:
    """Return ``text``, cut to ``most`` characters, with an ellipsis where it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with what it counts: ``1 domain``, ``2 domains``; ``many`` where that is not ``one`` + s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
