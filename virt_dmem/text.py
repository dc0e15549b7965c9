# SPDX-License-Identifier: GPL-2.0-or-later
"""Make untrusted text safe to show on a terminal, in a log, in an error."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["clipped", "counted", "did_you_mean", "printable"]

_MOST_COMPARED = 20_000
"""Names to compare with what was typed, within 0.2 s."""


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


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """Return a question with the known name that is nearest to what was typed, and a space; empty: none is near."""
    import difflib  # noqa: PLC0415 -- for a typo only
    from itertools import islice  # noqa: PLC0415

    names = [*islice(known, _MOST_COMPARED)]
    same = [name for name in names if name.lower() == typed.lower()]
    near = same or difflib.get_close_matches(clipped(typed, 80), names, n=1, cutoff=0.7)
    return f"Did you mean {printable(near[0])!r}? " if near else ""
