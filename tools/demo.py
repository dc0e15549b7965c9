# SPDX-License-Identifier: GPL-2.0-or-later
"""Demonstrate the main use case from end to end: pool, apply, start, inspect, destroy, revert.

Runs as root in a private mount namespace, with a private libvirtd and virt-dmemd; on the host it changes the
number of huge pages and the HVO setting, and restores both, also after Ctrl-C.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from bench.in_lab import run_in_lab
from tests.lab.image import missing_for_lab
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, guest_image
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for
from virt_dmem.host import hvo_bug
from virt_dmem.pools.backends.dmemfs import Dmemfs

GUEST = "demo-guest"
GUEST_MEMORY = "512M"
POOL = "demo"
POOL_SIZE = "1G"
BACKEND = os.environ.get("BACKEND", "") or "hugetlbfs"
BOOT_SECONDS = 600.0 if BACKEND == "dmemfs" else 90.0
"""An emulated host takes minutes to emulate a guest."""

VIRT_DMEM = str(Path(sys.executable).with_name("virt-dmem"))


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(" ".join(text.split()), width=100), flush=True)


def chapter(title: str) -> None:
    """Print the title of the next part."""
    rule = "─" * max(4, 96 - len(title))
    print(f"\n── {title} {rule}\n", flush=True)


def run(*command: str, check: bool = True) -> str:
    """Run a command, showing it and its output as an operator would see them; return the output."""
    shown = shlex.join(["virt-dmem" if part == VIRT_DMEM else part for part in command])
    print(f"  $ {shown}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(textwrap.indent(done.stdout, "    "), flush=True)
    if check and done.returncode:
        raise RigError(f"'{shown}' ended with status {done.returncode}.")
    return done.stdout


def make_pool(undo: ExitStack) -> None:
    """Create a pool of huge pages or, as BACKEND says, on dmemfs; if that is impossible, one that saves nothing."""

    def destroy() -> None:
        subprocess.run([VIRT_DMEM, "pool", "destroy", POOL, "--force"], capture_output=True, check=False)

    undo.callback(destroy)
    create = (VIRT_DMEM, "pool", "create", POOL, "--size", POOL_SIZE)
    command = (*create, "--backend", BACKEND, "--page-size", "2M")
    print(f"  $ {shlex.join(['virt-dmem', *command[1:]])}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(textwrap.indent(done.stdout, "    "), flush=True)
    if done.returncode:
        say("""
            This machine has no such memory available, so the demo continues with a pool on tmpfs. It
            works the same way, and saves nothing.
        """)
        print()
        run(*create, "--backend", "tmpfs")


def boot_lines(console: str) -> list[str]:
    """Return the lines of the guest's console, once it has printed its memory size; empty before."""
    return [line.strip() for line in console.splitlines()] if "MemTotal" in console else []


def show_mappings(pid: int) -> None:
    """Print the mappings of the pool's memory in QEMU's address space."""
    print(f"  $ grep virt-dmem /proc/{pid}/maps")
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "/virt-dmem/pools/" in line:
            print(f"    {line}")
    print(flush=True)


def tell(libvirt: PrivateLibvirt, image: GuestImage, undo: ExitStack) -> None:
    """Run all parts, and register with ``undo`` how to revert each step."""
    chapter("1. A pool: memory reserved for guests")
    say(
        """
        A pool is allocated once, before any guest needs it. The kernel's metadata for its pages
        (struct page) is freed by HVO during the allocation.
    """
        if BACKEND == "hugetlbfs"
        else """
        This memory was withheld from the kernel at boot, so it never had any metadata (struct page).
        The pool finds it automatically, and the dmemfs module provides files on it.
    """
    )
    print()
    make_pool(undo)
    run(VIRT_DMEM, "savings")

    chapter("2. An ordinary domain, and what 'apply' changes in its XML")
    undo.callback(libvirt.remove, GUEST)
    cmdline = "mitigations=off nokaslr tsc=reliable no_timer_check" if BACKEND == "dmemfs" else ""
    libvirt.define(domain_xml(GUEST, memory=GUEST_MEMORY, image=image, cmdline=cmdline))
    run(VIRT_DMEM, "apply", GUEST, "--pool", POOL, "--print-diff")

    chapter("3. virsh start")
    say("""
        libvirt calls the hook; the hook calls virt-dmemd, which reserves the memory, populates
        every page that is not pre-zeroed, links it where QEMU opens it, and verifies afterwards that
        QEMU maps it.
    """)
    print()
    began = time.monotonic()
    run("virsh", "-c", libvirt.uri, "start", GUEST)
    say(f"  That took {time.monotonic() - began:.1f} s, here without hardware virtualization.")
    print()
    run(VIRT_DMEM, "show", GUEST, "--timing")

    chapter("4. The guest runs on pool memory")
    lines = wait_for("the guest's console", lambda: boot_lines(libvirt.console(GUEST)), timeout=BOOT_SECONDS)
    print("  The guest's own console:\n")
    for line in lines:
        if re.search(r"virt-dmem|MemTotal|Linux version", line):
            print(f"    {line}")
    print("\n  The mappings of the pool in QEMU:\n")
    show_mappings(libvirt.qemu_pids()[GUEST])
    run(VIRT_DMEM, "pool", "list")

    chapter("5. virsh destroy: the memory is free again")
    run("virsh", "-c", libvirt.uri, "destroy", GUEST)
    run(VIRT_DMEM, "pool", "list")
    run(VIRT_DMEM, "unapply", GUEST)
    loses = hvo_bug.verdict(os.uname().release) is hvo_bug.Verdict.BAD
    run(VIRT_DMEM, "pool", "destroy", POOL, *(["--force"] if loses else []))


def memory_was_reserved() -> bool:
    """Return whether this host has the dmemfs module, and memory that was withheld from its kernel."""
    return Dmemfs().probe().available and bool(Dmemfs().nodes()[0])


def demo_in_lab() -> int:
    """Run the demo on a host that is booted for it."""
    if reason := missing_for_lab():
        print(
            f"dmemfs needs a host that was booted for it; to boot one in QEMU, this one {reason}.", file=sys.stderr
        )
        return 1
    say("""
        dmemfs needs a host that was booted with memory withheld from its kernel. This one was not, so
        a complete Debian host is booted in QEMU (a minute or two), and the demo runs there.
    """)
    try:
        return run_in_lab("tools.demo", env={"BACKEND": "dmemfs"})
    except RigError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def host_counters() -> dict[str, str]:
    """Return the host settings that the demo may change, to show that they were restored."""
    files = {
        "huge pages of 2 MiB": Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
        "HVO (vm.hugetlb_optimize_vmemmap)": Path("/proc/sys/vm/hugetlb_optimize_vmemmap"),
    }
    return {name: path.read_text().strip() for name, path in files.items() if path.exists()}


def main() -> int:
    """Run the demo; return the exit status."""
    if os.geteuid() != 0:
        print("The demo needs root: sudo make demo", file=sys.stderr)
        return 1

    def interrupted(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    if BACKEND == "dmemfs" and not memory_was_reserved():
        return demo_in_lab()
    before = host_counters()
    print("virt-dmem: guest memory without struct page overhead\n")
    say("""
        The demo runs in a private mount namespace, with a private libvirtd and virt-dmemd; an
        existing libvirt on this machine is not touched. This private libvirtd runs without
        security drivers and cgroups; an installation keeps both.
    """)
    status = 0
    try:
        with ExitStack() as undo:
            enter_private_namespace()
            image = guest_image()
            libvirt = undo.enter_context(PrivateLibvirt())
            undo.enter_context(Daemon())
            tell(libvirt, image, undo)
    except KeyboardInterrupt:
        print("\nInterrupted; all changes have been reverted.")
        status = 130
    except RigError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        status = 1
    chapter("Reverted")
    after = host_counters()
    for name, value in before.items():
        print(f"  {name}: {value} before, {after[name]} now")
    return status


if __name__ == "__main__":
    sys.exit(main())
