# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the progress of long work: a bar on a terminal, else a line from time to time, for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virt_dmem.cli.output import Output
from virt_dmem.text import printable
from virt_dmem.units import format_size

__all__ = ["progress"]

Report = Callable[[str, int, int], None]

LINE_SECONDS = 10.0
"""Time between two lines; what takes less has none."""


@contextmanager
def progress(out: Output) -> Iterator[Report]:
    """Yield a function that shows progress; it takes a text, bytes done and bytes in all."""
    if out.as_json or not sys.stderr.isatty():
        yield _ignore if out.as_json else _Lines(out)
        return
    from rich.console import Console  # noqa: PLC0415 -- slow, and for a terminal only
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    words = TextColumn("{task.description}", markup=False)
    bar = Progress(
        words, BarColumn(), DownloadColumn(binary_units=True), console=Console(stderr=True), transient=True
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(
            task, description=printable(text), completed=done, total=total or None
        )


class _Lines:
    """Print a line every ``LINE_SECONDS``, such as into the log of a pool's unit."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._next = time.monotonic() + LINE_SECONDS

    def __call__(self, text: str, done: int, total: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_SECONDS
        self._out.note(f"{text}: {format_size(done)} of {format_size(total)}" if total else text)


def _ignore(_text: str, _done: int, _total: int) -> None:
    """Show nothing: the answer is for a program."""
