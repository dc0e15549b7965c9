# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs that a guest's memory goes back to the kernel between two guests, against zeroing it in place.

A file full of a guest's bytes, in turns: *in place*, renamed at the stop and zeroed by the helper in background;
*given back*, emptied at the stop and brought in anew by the helper in the background, zeroed by the kernel. The
start finds a whole file either way. A start that comes before any background work does the same in both: it empties
the file, and brings its memory in.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.alone import run_alone
from bench.hugepages import borrowed, mounted, obtainable
from bench.prefault import KINDS, Kind, helper_seconds
from bench.results import Results
from tests.rig.namespace import enter_private_namespace
from tests.rig.processes import RigError
from virt_dmem.pools import segment_files
from virt_dmem.units import parse_size

NAME = "cleaning"
IN_PLACE, GIVEN_BACK = "in place", "given back"


class Guest:
    """The file of a guest that has written everywhere."""

    def __init__(self, kind: Kind, directory: Path, size_bytes: int) -> None:
        self._kind, self._size_bytes = kind, size_bytes
        self._path, self._kept = directory / "extent", directory / "kept"

    def ran(self) -> None:
        """Be there anew."""
        self._kept.unlink(missing_ok=True)
        self._path.touch()
        os.truncate(self._path, self._size_bytes)
        self._helper("populate", self._path)

    def stop(self, case: str) -> None:
        """Do what the stop waits for."""
        if case == IN_PLACE:
            self._path.rename(self._kept)
            return
        segment_files.empty(self._path)
        self._path.unlink()

    def clean(self, case: str) -> None:
        """Do what is done in the background, so that the next start finds clean memory."""
        if case == GIVEN_BACK:
            self._kept.touch()
            os.truncate(self._kept, self._size_bytes)
        self._helper("zero" if case == IN_PLACE else "populate", self._kept)

    def _helper(self, mode: str, path: Path) -> None:
        options = ["--mode", mode, "--size", str(self._size_bytes), "--page-size", str(self._kind.page_size)]
        helper_seconds(*options, str(path))


def seconds(work: Callable[[str], None], case: str) -> float:
    """Return how long work takes."""
    began = time.perf_counter()
    work(case)
    return time.perf_counter() - began


def measure_kind(results: Results, kind: Kind, sizes: list[int], rounds: int) -> None:
    """Measure one kind of memory; what the host cannot give becomes a note."""
    with ExitStack() as undo:
        try:
            most = obtainable(max(sizes), kind.huge_page) if kind.huge_page else max(sizes)
            if kind.huge_page:
                undo.enter_context(borrowed(most, kind.huge_page))
            directory = undo.enter_context(mounted(kind.fstype, kind.options))
        except (RigError, subprocess.CalledProcessError) as error:
            results.notes.append(f"{NAME}: no {kind.name}: {error}")
            return
        for size_bytes in [size for size in sizes if size <= most and not size % kind.page_size]:
            guest = Guest(kind, directory, size_bytes)
            for number in range(rounds + 1):
                for case in (IN_PLACE, GIVEN_BACK):
                    guest.ran()
                    stop, clean = seconds(guest.stop, case), seconds(guest.clean, case)
                    if number:
                        for what, took in (("the stop", stop), ("the background", clean)):
                            results.add(NAME, f"{what}, {kind.name}", case, took, unit="s", size_bytes=size_bytes)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all kinds that a pool may be of."""
    enter_private_namespace()
    for kind in KINDS:
        if not kind.slow:
            measure_kind(results, kind, [parse_size(size) for size in arguments.sizes], arguments.rounds)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sizes", nargs="*", default=["512M", "4G"], metavar="SIZE", help="(default: 512M 4G)")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
