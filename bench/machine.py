# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe the machine, and whether other work ran on it meanwhile."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from virt_dmem.units import format_size

__all__ = ["describe", "Others", "available_bytes"]


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _says(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def available_bytes() -> int:
    """Return the available memory in bytes, as the kernel estimates it."""
    return int(_first(r"^MemAvailable:\s+(\d+)", "/proc/meminfo")) * 1024


def describe() -> dict[str, str]:
    """Return the properties of this machine that matter for a figure."""
    cpu = _first(r"^model name\s*:\s*(.*)", "/proc/cpuinfo") or platform.machine()
    virtual = "hypervisor" in _first(r"^flags\s*:\s*(.*)", "/proc/cpuinfo").split()
    facts = {
        "processor": f"{cpu}, {os.cpu_count()} CPUs" + (", a virtual machine" if virtual else ""),
        "nodes": str(len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        "memory": format_size(int(_first(r"^MemTotal:\s+(\d+)", "/proc/meminfo")) * 1024),
        "kernel": platform.release(),
        "QEMU": _says("qemu-system-x86_64", "--version").removeprefix("QEMU emulator version "),
        "libvirt": _says("libvirtd", "--version").removeprefix("libvirtd (libvirt) "),
        "Python": platform.python_version(),
    }
    return {name: fact for name, fact in facts.items() if fact}


class Others:
    """The CPU use of other work between its creation and ``note()``."""

    def __init__(self) -> None:
        self._stalled = self._stall_us()
        self._times = os.times()

    @staticmethod
    def _stall_us() -> int:
        return int(_first(r"^some .*total=(\d+)", "/proc/pressure/cpu") or 0)

    def note(self) -> str:
        """Return a sentence about other load: /proc/pressure/cpu counts the time that tasks waited for a CPU."""
        elapsed = os.times().elapsed - self._times.elapsed
        share = (self._stall_us() - self._stalled) / 1e6 / elapsed if elapsed else 0.0
        calm = "calm" if share < 0.15 else "not calm"
        return f"The machine was {calm}: for {share:.0%} of the time something waited for a CPU."
