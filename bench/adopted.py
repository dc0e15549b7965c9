# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what ``<allocation mode='immediate'/>`` costs the start of a domain whose memory is there already.

nova writes it, and a domain that a rule adopts keeps it: QEMU touches all of the memory once more, with one thread.
Alternately, on each backend that this host has: a domain that was applied (``ondemand``), and one that is adopted
with nova's XML. From hook ``start`` to hook ``started``, and QEMU's CPU time until then, which other load hardly
changes; paused guests under TCG on pre-zeroed memory.

``--dmemfs``: also on dmemfs; ``python -m bench.in_lab bench.adopted --dmemfs`` does that on a host that has some.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

from bench.alone import run_alone
from bench.hugepages import NotEnough
from bench.machine import available_bytes
from bench.results import Results
from bench.start_path import CONFIG, GUEST, HOOK_TO_HOOK, MARGIN, SIZES, Case, pool, put_clocks, start_once
from tests.rig import nova
from tests.rig.daemon import Daemon
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import PrivateLibvirt
from virt_dmem.units import GIB, format_size, parse_size

__all__ = ["measure"]

NAME = "adopted"
QEMU_CPU = "CPU time of QEMU until it has started"
BACKENDS = ("hugetlbfs", "tmpfs")


def _cases(backend: str) -> list[Case]:
    metadata = f"<bench:pool xmlns:bench='urn:virt-dmem:bench:{backend}'/>"
    return [
        Case(f"{backend}, applied (ondemand)", backend),
        Case(f"{backend}, adopted (immediate)", backend, nova.FILE_BACKED, metadata),
    ]


def _rule(backend: str) -> str:
    return f'[[adopt]]\nmetadata = "urn:virt-dmem:bench:{backend}"\npool = "{backend}"\n'


def _cpu_of_qemu(libvirt: PrivateLibvirt) -> float:
    """Return the CPU time of the guest's QEMU in seconds, with that of threads that have ended."""
    clock = (~libvirt.qemu_pids()[GUEST] << 3) | 2  # as clock_getcpuclockid(3) has it
    return time.clock_gettime(clock)


def _start(libvirt: PrivateLibvirt, case: Case, size: int) -> tuple[float, float, str]:
    """Start a guest; return the seconds from hook to hook, those of QEMU's CPU time, and what was amiss."""
    cpu: list[float] = []
    between, _, amiss = start_once(libvirt, case, size, then=lambda: cpu.append(_cpu_of_qemu(libvirt)))
    return between, cpu[0], amiss


def _measure_backend(results: Results, libvirt: PrivateLibvirt, backend: str, size: int, rounds: int) -> None:
    with ExitStack() as undo:
        try:
            undo.enter_context(pool(backend, size, "--backend", backend))
        except NotEnough as error:
            results.notes.append(f"{NAME}: no {format_size(size)} on {backend}: {str(error).splitlines()[0]}")
            return
        for number in range(rounds + 1):
            for case in _cases(backend):
                between, cpu, amiss = _start(libvirt, case, size)
                if amiss and (note := f"{NAME}: {case.name}: {amiss}.") not in results.notes:
                    results.notes.append(note)
                if number:
                    results.add(NAME, HOOK_TO_HOOK, case.name, between, unit="s", size_bytes=size)
                    results.add(NAME, QEMU_CPU, case.name, cpu, unit="s", size_bytes=size)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all sizes on all backends."""
    backends = [*BACKENDS, *(["dmemfs"] if arguments.dmemfs else [])]
    enter_private_namespace()
    with PrivateLibvirt() as libvirt, Daemon("".join(map(_rule, backends)) + CONFIG):
        put_clocks()
        for size in map(parse_size, arguments.sizes):
            for backend in backends:
                if backend != "dmemfs" and (available := available_bytes()) - MARGIN < size:
                    has = f"the host has {format_size(available)} available"
                    results.notes.append(f"{NAME}: no {format_size(size)} on {backend}: {has}")
                    continue
                rounds = arguments.rounds if size <= 8 * GIB else min(arguments.rounds, 3)
                _measure_backend(results, libvirt, backend, size, rounds)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sizes", nargs="*", default=list(SIZES), help=f"of the guests (default: {' '.join(SIZES)})")
    parser.add_argument("--dmemfs", action="store_true", help="also on dmemfs, which this host must have")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
