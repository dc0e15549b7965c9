# SPDX-License-Identifier: GPL-2.0-or-later
"""Show a progress bar on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virt_dmem.cli.output import Output
from virt_dmem.text import printable

__all__ = ["progress"]

Report = Callable[[str, int, int], None]


@contextmanager
def progress(out: Output) -> Iterator[Report]:
    """Yield a function that shows progress; it takes a text, bytes done and bytes in all."""
    if out.as_json or not sys.stderr.isatty():
        yield lambda *_: None
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
