# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast memory is brought in: our helper, QEMU's own preallocation, and what the machine could do.

For each kind of memory and number of threads, in turns: the helper on an empty file, from its start to its end,
less the time that it takes to say its version; the helper zeroing the same file in place, as memory is cleaned
between two domains; two limits on that file, mapped, both without any page fault: non-temporal stores, and 4 KiB
at a time as the kernel zeroes pages; QEMU with ``prealloc=on`` on an empty file, from its start to its greeting,
less the time that the same QEMU takes without (before and after). The kinds: huge pages of 2 MiB and of 1 GiB;
tmpfs as our pools mount it; tmpfs in pages of 4 KiB, as it is elsewhere. QEMU alone also on memfd, which libvirt
would use. Before each figure on memory that goes back to the kernel in between, the same amount is taken and given
back, so that all find memory that was in use just now.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.alone import run_alone
from bench.goals import at_least
from bench.hugepages import borrowed, mounted, obtainable
from bench.machine import available_bytes
from bench.qemu_alone import seconds_to_greeting
from bench.results import Results
from tests.rig.namespace import enter_private_namespace
from tests.rig.processes import RigError
from virt_dmem.native.programs import HELPER
from virt_dmem.units import GIB, format_size, parse_size

NAME = "prefault"
WHAT = "throughput"
HELPER_EMPTY, HELPER_IN_PLACE = "helper, empty file", "helper, zeroing in place"
LIMIT, LIMIT_PAGE = "limit: non-temporal stores", "limit: as the kernel zeroes, 4 KiB at a time"
QEMU = "QEMU, prealloc=on"
MEMFD = "memfd, 4 KiB"
_MOST_THREADS = 16


@dataclass(frozen=True)
class Kind:
    """A kind of memory: how it is mounted, and the page size that the helper is told.

    ``slow``: what no pool of ours is; less of it is measured, and nothing judged.
    """

    name: str
    fstype: str
    options: str
    page_size: int
    huge_page: int = 0
    slow: bool = False

    @property
    def gives_back(self) -> bool:
        """Whether a file that goes gives its memory back to the kernel at large."""
        return not self.huge_page


KINDS = (
    Kind("huge pages of 2 MiB", "hugetlbfs", "pagesize=2M", 2 << 20, 2 << 20),
    Kind("huge pages of 1 GiB", "hugetlbfs", "pagesize=1G", 1 << 30, 1 << 30),
    Kind("tmpfs, huge=within_size", "tmpfs", "huge=within_size", 4096),
    Kind("tmpfs, 4 KiB", "tmpfs", "huge=never", 4096, slow=True),
)


def thread_counts() -> list[int]:
    """Return 1, 2, 4, … up to the CPUs we may run on."""
    cpus = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return sorted({cpus, *(1 << power for power in range(5) if 1 << power <= cpus)})


def build_limit(directory: Path) -> Path:
    """Compile the program that finds the limits."""
    program = directory / "memory_limit"
    source = Path(__file__).with_name("memory_limit.c")
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-pthread", "-o", program, source], check=True)
    return program


class File:
    """A file of one kind of memory, measured in turns by all."""

    def __init__(self, kind: Kind, directory: Path, size: int, limit: Path) -> None:
        self._kind, self._size, self._limit = kind, size, limit
        self._path = directory / "extent"

    def round(self, threads: int) -> Iterator[tuple[str, float]]:
        """Measure all once; yield case and GiB/s."""
        with self._empty():
            yield HELPER_EMPTY, self._rate(self._helper("populate", threads))
            yield HELPER_IN_PLACE, self._rate(self._helper("zero", threads))
            command = [str(self._limit), str(self._path), str(self._size), str(threads)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            yield LIMIT, float(said[1])
            yield LIMIT_PAGE, float(said[3])
        with self._empty():
            backend = f"memory-backend-file,id=m,share=on,size={self._size},mem-path={self._path}"
            yield QEMU, self._rate(qemu_seconds(backend, threads))

    def _empty(self) -> ExitStack:
        stack = ExitStack()
        if self._kind.gives_back:
            self._create()
            self._helper("populate", 0)
            self._path.unlink()
        self._create()
        stack.callback(self._path.unlink)
        return stack

    def _create(self) -> None:
        self._path.touch()
        os.truncate(self._path, self._size)

    def _rate(self, seconds: float) -> float:
        return self._size / GIB / seconds

    def _helper(self, mode: str, threads: int) -> float:
        options = ["--mode", mode, "--size", str(self._size), "--page-size", str(self._kind.page_size)]
        without = helper_seconds("--version")
        return max(helper_seconds(*options, "--threads", str(threads), str(self._path)) - without, 1e-3)


def helper_seconds(*arguments: str) -> float:
    """Return how long the helper runs.

    :raise RigError: When it fails.
    """
    began = time.perf_counter()
    done = subprocess.run([str(HELPER), *arguments], capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise RigError(f"The helper with {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return took


def qemu_seconds(backend: str, threads: int) -> float:
    """Return what QEMU's preallocation takes: with it, less without (which touches no memory)."""
    before = seconds_to_greeting(f"{backend},prealloc=off")
    whole = seconds_to_greeting(f"{backend},prealloc=on,prealloc-threads={threads}")
    after = seconds_to_greeting(f"{backend},prealloc=off")
    return max(whole - (before + after) / 2, 1e-3)


def measure_kind(results: Results, kind: Kind, size: int, rounds: int, limit: Path) -> None:
    """Measure one kind of memory; what the host cannot give becomes a note."""
    with ExitStack() as undo:
        try:
            if kind.huge_page == GIB:
                size = min(size, obtainable(size, GIB))  # there is rarely so much in one piece
            if kind.huge_page:
                undo.enter_context(borrowed(size, kind.huge_page))
            directory = undo.enter_context(mounted(kind.fstype, kind.options))
        except (RigError, subprocess.CalledProcessError) as error:
            results.notes.append(f"prefault: no {kind.name}: {error}")
            return
        file = File(kind, directory, size, limit)
        for number in range(rounds + 1):
            for threads in thread_counts():
                for case, rate in file.round(threads):
                    if number:  # in the first round a virtual machine may only now be given its memory
                        add(results, kind.name, case, rate, threads)
        judge(results, kind, max(thread_counts()))


def add(results: Results, kind: str, case: str, rate: float, threads: int) -> None:
    """Add a figure in GiB/s."""
    results.add(NAME, f"{WHAT}, {kind}", case, rate, unit="GiB/s", threads=threads)


def judge(results: Results, kind: Kind, most_threads: int) -> None:
    """Judge whether it is the machine that sets the limit."""
    for threads in sorted({1, most_threads}):

        def series(case: str, threads: int = threads):  # noqa: ANN202 - Series or None
            return results.find(NAME, f"{WHAT}, {kind.name}", case, 0, threads)

        where = f"prefault: {kind.name}, {threads} thread{'s' if threads > 1 else ''}"
        ours = series(HELPER_EMPTY)
        if kind.huge_page:
            at_least(results, f"{where}, throughput to non-temporal stores", 0.9, ours, series(LIMIT))
            at_least(results, f"{where}, throughput to the kernel's way of zeroing", 0.9, ours, series(LIMIT_PAGE))
            at_least(
                results, f"{where}, in place to non-temporal stores", 0.9, series(HELPER_IN_PLACE), series(LIMIT)
            )
        if not kind.slow:
            at_least(results, f"{where}, throughput to QEMU's", 1.0, ours, series(QEMU))


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all kinds."""
    enter_private_namespace()
    size = parse_size(arguments.size)
    fits = (available_bytes() - 2 * GIB) // GIB * GIB
    if fits < size:
        results.notes.append(
            f"prefault: with {format_size(fits)}, not {format_size(size)}: that is what the host has available"
        )
        size = max(GIB, fits)
    with tempfile.TemporaryDirectory() as directory:
        limit = build_limit(Path(directory))
        for kind in KINDS:
            measure_kind(results, kind, size // 8 if kind.slow else size, arguments.rounds, limit)
        size //= 8
        for number in range(arguments.rounds + 1):
            for threads in thread_counts():
                rate = size / GIB / qemu_seconds(f"memory-backend-memfd,id=m,share=on,size={size}", threads)
                if number:
                    add(results, MEMFD, QEMU, rate, threads)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="4G", help="(default: %(default)s)")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
