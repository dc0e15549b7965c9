# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the duration of a memory hotplug, and how long QEMU's main loop is blocked meanwhile.

For each size, alternately: ``virt-dmem attach`` from a pool of huge pages; ``virsh attach-device`` alone to a guest
with ``<hugepages>``, whose QEMU preallocates. The stall is the longest answer to ``query-status``, sent every 2 ms
on a separate monitor. Paused guests under TCG. Allocates huge pages for twice the largest size, and frees them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench.alone import run_alone
from bench.goals import at_most
from bench.hugepages import borrowed
from bench.machine import available_bytes
from bench.results import Results
from bench.start_path import MARGIN, pool
from tests.rig.command import virt_dmem
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.stall import StallWatch
from virt_dmem.units import format_size, parse_size

NAME, TOOK, STALL = "attach", "the command", "longest stall of QEMU"
OURS, THEIRS = "virt-dmem attach", "virsh attach-device, <hugepages>"
GUEST = "bench-guest"
MONITOR = Path("/var/lib/libvirt/qemu/bench.qmp")
BOOT = parse_size("64M")
DEVICE = "<memory model='dimm'><target><size unit='b'>{}</size><node>0</node></target></memory>"


def attach_once(libvirt: PrivateLibvirt, size: int, case: str) -> tuple[float, float]:
    """Start a guest, attach memory to it; return the duration and the longest stall in seconds."""
    xml = domain_xml(
        GUEST,
        cells=[str(BOOT)],
        max_memory="8G",
        memory_backing="" if case == OURS else "<hugepages/>",
        qemu_args=["-qmp", f"unix:{MONITOR},server=on,wait=off"],
    )
    libvirt.define(xml)
    try:
        if case == OURS:
            virt_dmem("apply", GUEST, "--pool", "bench")
        libvirt.virsh("start", "--paused", GUEST)
        watch = StallWatch(MONITOR)
        with watch.running():
            began = time.monotonic()
            if case == OURS:
                virt_dmem("attach", GUEST, "--size", str(size))
            else:
                libvirt.virsh(
                    "attach-device", GUEST, "/dev/stdin", "--live", stdin=DEVICE.format(size), timeout=300
                )
            took = time.monotonic() - began
        return took, watch.longest
    finally:
        libvirt.remove(GUEST)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all sizes."""
    enter_private_namespace()
    sizes = [parse_size(size) for size in arguments.sizes]
    while sizes and 2 * (max(sizes) + BOOT) + MARGIN > available_bytes():
        largest = max(sizes)
        results.notes.append(f"attach: {format_size(largest)} skipped: the host does not have twice that available")
        sizes.remove(largest)
    if not sizes:
        return
    with ExitStack() as undo:
        plain = Path("/dev/shm/virt-dmem-bench-hugepages")
        undo.callback(plain.rmdir)
        plain.mkdir()
        undo.callback(subprocess.run, ["umount", "--lazy", plain], check=False)
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", plain], check=True)
        libvirt = undo.enter_context(PrivateLibvirt())
        undo.enter_context(Daemon())
        undo.enter_context(pool("bench", max(sizes) + BOOT))
        undo.enter_context(borrowed(max(sizes) + BOOT))
        for number in range(arguments.rounds + 1):
            for size in sizes:
                for case in (OURS, THEIRS):
                    took, longest = attach_once(libvirt, size, case)
                    if number:
                        results.add(NAME, TOOK, case, took, unit="s", size_bytes=size)
                        results.add(NAME, STALL, case, longest, unit="s", size_bytes=size)
    for size in sizes:
        ours, theirs = (results.find(NAME, STALL, case, size) for case in (OURS, THEIRS))
        at_most(results, f"attach: longest stall of QEMU, {format_size(size)}, to libvirt's own", 1.0, ours, theirs)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sizes", nargs="*", default=["1G", "4G"])


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
