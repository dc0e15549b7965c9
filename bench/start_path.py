# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure ``virsh start`` against libvirt alone, for guests of several sizes.

For each size, alternately: a guest on a pool with pre-zeroed memory; libvirt alone with ``<hugepages>`` and
with memfd, each preallocated with one thread and with as many as there are CPUs, and with memfd on demand (libvirt
refuses that for huge pages). Two clocks: from hook ``start`` to hook ``started`` (libvirt's and QEMU's own time,
and whatever of ours is left on that path), and the whole of ``virsh start``. Paused guests under TCG. Where the
host has no memory for a pool and as many huge pages beside it, they take turns with it.

``--dmemfs``: also a guest on dmemfs, whose memory the kernel has zeroed before. ``python -m bench.in_lab
bench.start_path --dmemfs`` does that on a host that has some.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.alone import run_alone
from bench.goals import at_most
from bench.hugepages import NotEnough, borrowed, compact
from bench.machine import available_bytes
from bench.results import Results
from tests.rig.command import virt_dmem
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError
from virt_dmem.units import GIB, MIB, format_size, parse_size

NAME = "start"
HOOK_TO_HOOK, WHOLE = "hook start to hook started", "virsh start"
OURS, DMEMFS = "pool of huge pages", "pool on dmemfs"
ON_DEMAND = "libvirt, memfd on demand"
SIZES = ("512M", "4G", "16G")
MARGIN = 2 * GIB
MEMFD_MOST = 4 * GIB
READY_SECONDS = 90.0
WARM_UP_BYTES = 64 * MIB
CONFIG = "[prefault]\nready_pressure = 100.0\n"
"""Pre-zero memory whatever else runs here: that is not measured, and should not take long."""
CLOCK = Path("/run/virt-dmem/bench-clock")
HOOKS = Path("/etc/libvirt/hooks/qemu.d")
GUEST = "bench-guest"
_CLOCK_HOOK = f"""#!/bin/sh
[ "$2" = @OPERATION@ ] && date +%s%N >>{CLOCK}
exit 0
"""


@dataclass(frozen=True)
class Case:
    """A type of guest memory: a pool, or memory by libvirt's XML."""

    name: str
    pool: str = ""
    memory_backing: str = ""
    metadata: str = ""
    """By which a rule adopts it to the pool, instead of an apply."""

    @property
    def huge_pages(self) -> bool:
        """Whether libvirt uses huge pages of the host."""
        return "<hugepages/>" in self.memory_backing


WARM_UP = Case("", "", "<source type='memfd'/>")
"""Started before each turn where memory was made room for: that drops the caches that QEMU's program was in."""


def opponents() -> list[Case]:
    """Return the cases of libvirt without virt-dmem."""
    many = len(os.sched_getaffinity(0))
    found = [Case(ON_DEMAND, "", "<source type='memfd'/>")]
    for kind, xml in (("<hugepages>", "<hugepages/>"), ("memfd", "<source type='memfd'/>")):
        for threads in sorted({1, many}):
            allocation = f"<allocation mode='immediate' threads='{threads}'/>"
            name = f"libvirt, {kind} preallocated, {threads} thread{'s' if threads > 1 else ''}"
            found.append(Case(name, "", f"{xml}{allocation}"))
    return found


def put_clocks() -> None:
    """Put a hook before ours at ``start``, and one after ours at ``started``."""
    for name, operation in (("00-clock", "start"), ("99-clock", "started")):
        new = HOOKS.parent / f".{name}"
        new.write_text(_CLOCK_HOOK.replace("@OPERATION@", operation))
        new.chmod(0o755)
        new.rename(HOOKS / name)


def wait_until_prezeroed(pool: str, size: int) -> str:
    """Wait until the pool has ``size`` bytes of pre-zeroed memory; return why it never will, empty when it has."""
    while any(int(path.read_text()) for path in Path("/sys/fs/dmemfs").glob("*/dirty_bytes")):
        time.sleep(0.2)  # dmemfs zeroes what is free
    deadline = time.monotonic() + READY_SECONDS
    while True:
        found = json.loads(virt_dmem("pool", "show", pool, "--json"))["pool"]
        if "ready_bytes" not in found:
            return "this virt-dmemd does not pre-zero memory: it is populated during 'virsh start'"
        if found["ready_bytes"] >= size or found.get("ready_policy") == "kernel":  # which has been waited for
            return ""
        if time.monotonic() > deadline:
            return f"after {READY_SECONDS:g} s only {found['ready_bytes']} of {size} bytes were pre-zeroed"
        time.sleep(0.1)


def start_once(
    libvirt: PrivateLibvirt, case: Case, size: int, *, then: Callable[[], object] = lambda: None
) -> tuple[float, float, str]:
    """Start a guest, and do something ``then``.

    :return: The seconds from hook to hook and of all of it, and what was amiss.
    """
    xml = domain_xml(GUEST, memory=str(size), memory_backing=case.memory_backing, metadata=case.metadata)
    libvirt.define(xml)
    try:
        amiss = ""
        if case.pool:
            if not case.metadata:
                virt_dmem("apply", GUEST, "--pool", case.pool)
            amiss = wait_until_prezeroed(case.pool, size)
        CLOCK.unlink(missing_ok=True)
        began = time.monotonic()
        libvirt.virsh("start", "--paused", GUEST, timeout=300)
        whole = time.monotonic() - began
        then()
        first, last = (int(line) for line in CLOCK.read_text().split())
        return (last - first) / 1e9, whole, amiss
    finally:
        libvirt.remove(GUEST)


@contextmanager
def pool(name: str, size: int, *more: str) -> Iterator[None]:
    """Create a pool for as long as the context lasts.

    :raise NotEnough: When it cannot be created.
    """
    compact()
    try:
        virt_dmem("pool", "create", name, "--size", str(size), *more)
    except RigError as error:
        raise NotEnough(str(error)) from error
    try:
        yield
    finally:
        try:
            virt_dmem("reconcile")
            virt_dmem("pool", "destroy", name, "--force")
        except RigError as error:
            print(error, file=sys.stderr)


def measure_size(results: Results, libvirt: PrivateLibvirt, size: int, rounds: int, dmemfs: str) -> None:
    """Measure all cases with guests of one size."""
    ours, others = [Case(OURS, "bench")], opponents()
    if size > MEMFD_MOST:
        others = [case for case in others if case.huge_pages or case.name == ON_DEMAND]
        results.notes.append(f"start: memfd is not preallocated for {format_size(size)}: that takes too long")
    if dmemfs:
        ours.append(Case(DMEMFS, dmemfs))
    with_pages, without = (
        [case for case in others if case.huge_pages],
        [case for case in others if not case.huge_pages],
    )
    side_by_side = available_bytes() - MARGIN >= 3 * size
    with ExitStack() as always:
        if side_by_side:
            always.enter_context(pool("bench", size))
            always.enter_context(borrowed(size))
        for number in range(rounds + 1):
            for cases, memory in ((ours, "pool"), (with_pages, "pages"), (without, "")):
                with ExitStack() as turn:
                    if not side_by_side and memory == "pool":
                        turn.enter_context(pool("bench", size))
                    elif not side_by_side and memory == "pages":
                        turn.enter_context(borrowed(size))
                    if not side_by_side:
                        start_once(libvirt, WARM_UP, WARM_UP_BYTES)
                    for case in cases:
                        between, whole, amiss = start_once(libvirt, case, size)
                        if amiss and (note := f"start: {case.name}: {amiss}.") not in results.notes:
                            results.notes.append(note)
                        if number:
                            results.add(NAME, HOOK_TO_HOOK, case.name, between, unit="s", size_bytes=size)
                            results.add(NAME, WHOLE, case.name, whole, unit="s", size_bytes=size)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all sizes."""
    enter_private_namespace()
    with ExitStack() as undo:
        # libvirt takes the hugetlbfs mounts it finds when it starts for its own
        plain = Path("/dev/shm/virt-dmem-bench-hugepages")
        undo.callback(plain.rmdir)
        plain.mkdir(exist_ok=True)
        undo.callback(subprocess.run, ["umount", "--lazy", plain], check=False)
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", plain], check=True)
        libvirt = undo.enter_context(PrivateLibvirt())
        undo.enter_context(Daemon(CONFIG))
        put_clocks()
        for size in map(parse_size, arguments.sizes):
            available = available_bytes()
            if available - MARGIN < size:
                text = (
                    f"the host has {format_size(available)} available, and {format_size(MARGIN)} is left to others"
                )
                results.notes.append(f"start: no guests of {format_size(size)}: {text}")
                continue
            rounds = arguments.rounds if size <= 8 * GIB else min(arguments.rounds, 3)
            try:
                with ExitStack() as dmemfs:
                    if arguments.dmemfs:
                        dmemfs.enter_context(pool("dmem", size, "--backend", "dmemfs"))
                    measure_size(results, libvirt, size, rounds, "dmem" if arguments.dmemfs else "")
            except NotEnough as error:
                results.notes.append(f"start: no more guests of {format_size(size)}: {str(error).splitlines()[0]}")
    for size in map(parse_size, arguments.sizes):
        for what in (HOOK_TO_HOOK, WHOLE):
            text = f"start: {what}, {format_size(size)} on a pre-zeroed pool to libvirt without preallocation"
            ours, theirs = (results.find(NAME, what, case, size) for case in (OURS, ON_DEMAND))
            at_most(results, text, 1.15, ours, theirs)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sizes", nargs="*", default=list(SIZES), help=f"of the guests (default: {' '.join(SIZES)})")
    parser.add_argument("--dmemfs", action="store_true", help="also on dmemfs, which this host must have")


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
