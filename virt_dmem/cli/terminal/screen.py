# SPDX-License-Identifier: GPL-2.0-or-later
"""Paint text for a terminal: colours, and bars that show a size as parts of a whole."""

from __future__ import annotations

import os
import shutil
import sys

from virt_dmem.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["CLEAR", "Part", "Screen", "add_color"]

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
"""Move to the upper left corner, and clear the screen and what has scrolled off it."""

_CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "bold": 1, "dim": 2}
_MOST_COLUMNS = 100

Part = tuple[int, str, str]
"""Size, character and colour of a part of a bar."""


def add_color(parser: argparse.ArgumentParser) -> None:
    """Declare ``--color``."""
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours; auto, the default: on a terminal, unless NO_COLOR is set",
    )


class Screen:
    """Know the width of what is written to, and whether it shows colours."""

    def __init__(self, color: str) -> None:
        """Take ``auto``, ``always`` or ``never``; ``auto`` follows https://no-color.org."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
        self.in_color = color == "always" or (color == "auto" and not plain)
        self.columns = min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
        self._wraps = sys.stdout.isatty()

    def paint(self, text: str, color: str) -> str:
        """Return untrusted ``text``, safe to print, in a colour where there are colours."""
        safe = printable(text)
        return f"\x1b[{_CODES[color]}m{safe}\x1b[0m" if self.in_color and color and safe else safe

    def wrapped(self, text: str, indent: str = "") -> str:
        """Return untrusted ``text``, safe to print, indented; on a terminal in lines that fit it, else in one."""
        if not self._wraps:
            return f"{indent}{printable(text)}"
        import textwrap  # noqa: PLC0415 -- on a terminal only

        return textwrap.fill(
            printable(text),
            self.columns,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def bar(self, parts: Sequence[Part], whole: int, width: int) -> str:
        """Return a bar of ``width`` characters: the parts in their order, then dots.

        A part that is there has a character at least, and only a bar without a rest has no dot.
        """
        sizes = [size for size, _, _ in parts]
        cells = _cells([*sizes, max(0, whole - sum(sizes))], width)
        painted = [self.paint(mark * count, color) for (_, mark, color), count in zip(parts, cells, strict=False)]
        return f"[{''.join(painted)}{self.paint('·' * cells[-1], 'dim')}]"


def _cells(sizes: list[int], width: int) -> list[int]:
    """Share ``width`` cells out by size: one at least to each that is not 0, what is over to the largest."""
    whole = sum(sizes)
    if not whole:
        return [*([0] * (len(sizes) - 1)), width]
    cells = [max(1, size * width // whole) if size else 0 for size in sizes]
    while over := sum(cells) - width:
        largest = max(range(len(cells)), key=cells.__getitem__) if over > 0 else sizes.index(max(sizes))
        cells[largest] -= 1 if over > 0 else over
    return cells
