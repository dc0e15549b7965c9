# SPDX-License-Identifier: GPL-2.0-or-later
"""What users feel: ``virsh start``, against libvirt alone with the same memory.

For each size, in turns: a guest on a pool of ours; libvirt alone with ``<hugepages>`` (QEMU preallocates); libvirt
alone with memfd on demand (nothing preallocated). Two clocks: from hook ``start`` to hook ``started`` (libvirt's
and QEMU's own time, and whatever of ours is left on that path), and the whole of ``virsh start``. Paused guests
under TCG; medians in seconds. Takes huge pages for twice the largest size, and gives them back.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import PrivateLibvirt
from virt_dmem.units import format_size, parse_size

CLOCK = Path("/run/virt-dmem/bench-clock")
HOOKS = Path("/etc/libvirt/hooks/qemu.d")
VIRT_DMEM = str(Path(sys.executable).with_name("virt-dmem"))
NAME = "bench-guest"
_CLOCK_HOOK = f"""#!/bin/sh
[ "$2" = @OPERATION@ ] && date +%s%N >>{CLOCK}
exit 0
"""


def put_clocks() -> None:
    """Put a hook before ours at ``start``, and one after ours at ``started``."""
    for name, operation in (("00-clock", "start"), ("99-clock", "started")):
        new = HOOKS.parent / f".{name}"
        new.write_text(_CLOCK_HOOK.replace("@OPERATION@", operation))
        new.chmod(0o755)
        new.rename(HOOKS / name)


def start_once(libvirt: PrivateLibvirt, xml: str, *, apply: bool) -> tuple[float, float]:
    """Start a guest, and return the seconds from hook to hook and of all of ``virsh start``."""
    libvirt.define(xml)
    try:
        if apply:
            subprocess.run([VIRT_DMEM, "apply", NAME, "--pool", "bench"], check=True, capture_output=True)
        CLOCK.unlink(missing_ok=True)
        began = time.monotonic()
        libvirt.virsh("start", "--paused", NAME, timeout=300)
        whole = time.monotonic() - began
        first, last = (int(line) for line in CLOCK.read_text().split())
        return (last - first) / 1e9, whole
    finally:
        libvirt.remove(NAME)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["512M", "4G"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    largest = max(map(parse_size, arguments.sizes))
    enter_private_namespace()
    hook_to_hook: dict[tuple[str, str], list[float]] = defaultdict(list)
    whole: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as undo:
        # libvirt takes the hugetlbfs mounts it finds when it starts for its own
        plain = Path("/dev/shm/virt-dmem-bench-hugepages")
        undo.callback(plain.rmdir)
        plain.mkdir()
        undo.callback(subprocess.run, ["umount", "--lazy", plain], check=False)
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", plain], check=True)
        libvirt = undo.enter_context(PrivateLibvirt())
        undo.enter_context(Daemon())
        put_clocks()
        undo.callback(subprocess.run, [VIRT_DMEM, "pool", "destroy", "bench"], capture_output=True, check=False)
        subprocess.run([VIRT_DMEM, "pool", "create", "bench", "--size", str(largest)], check=True)
        # as many huge pages again, for libvirt alone
        pages = Path("/proc/sys/vm/nr_hugepages")
        undo.callback(lambda: pages.write_text(str(int(pages.read_text()) - largest // (2 << 20))))
        pages.write_text(str(int(pages.read_text()) + largest // (2 << 20)))
        for _ in range(arguments.rounds):
            for size in arguments.sizes:
                cases = {
                    "pool, prefaulted in prepare": (domain_xml(NAME, memory=size), True),
                    "libvirt, <hugepages>": (domain_xml(NAME, memory=size, memory_backing="<hugepages/>"), False),
                    "libvirt, memfd on demand": (
                        domain_xml(NAME, memory=size, memory_backing="<source type='memfd'/>"), False,
                    ),
                }  # fmt: skip
                for case, (xml, apply) in cases.items():
                    between, all_of_it = start_once(libvirt, xml, apply=apply)
                    hook_to_hook[size, case].append(between)
                    whole[size, case].append(all_of_it)
    print(f"{'memory':>8}  {'case':30} {'hook to hook':>13} {'virsh start':>12}    median of {arguments.rounds}")
    for (size, case), figures in hook_to_hook.items():
        print(
            f"{format_size(parse_size(size)):>8}  {case:30} {statistics.median(figures):12.2f}s"
            f" {statistics.median(whole[size, case]):11.2f}s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
