# SPDX-License-Identifier: GPL-2.0-or-later
"""Check what this architecture and kernel can save: by HVO, or by memory without struct pages."""

from __future__ import annotations

from virt_dmem.host import dmemfs_support, huge_pages, kernel
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Result, failed, passed, warned
from virt_dmem.pools.backends.struct_pages import BASE_PAGE
from virt_dmem.units import format_size

__all__ = ["architecture"]


def architecture(machine: Machine) -> Result:
    """Check that a kind of pool is there that saves struct pages, and that pools on dmemfs can be mounted."""
    arch = kernel.architecture(root=machine.root)
    if huge_pages.hvo(root=machine.root) is None:
        huge = f"huge pages save nothing, as {huge_pages.why_no_hvo(arch)}"
    else:
        huge = "huge pages save by HVO"
    here = f"{arch}, Linux {kernel.release(root=machine.root)}, pages of {format_size(BASE_PAGE)}: {huge};"
    if not (reason := dmemfs_support.unsupported(root=machine.root)):
        return passed(f"{here} dmemfs is supported.")
    outcome = failed if any(record.backend == "dmemfs" for record in machine.records()) else warned
    return outcome(
        f"{here} {dmemfs_support.REFUSAL}{reason}.",
        f"dmemfs needs {dmemfs_support.NEEDS} here (/usr/share/doc/virt-dmem/guide/aarch64.md).",
    )
