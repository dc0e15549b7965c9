# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell where virt-dmem's module dmemfs mounts nothing, with the module's reason (``kernel/support.c``).

The module knows by probes of the kernel that it was built for, and by the CPU; this predicts the first by the
kernel's version, so that a plan can be made before there is a module.
docs/development/decisions/0013-mixed-maps.md has why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from virt_dmem.host import kernel, kernel_log
from virt_dmem.units import KIB

__all__ = ["NEEDS", "REFUSAL", "refused_by", "unsupported"]

NEEDS = "Linux 7.3 or newer with pages of 4 KiB, FEAT_S2FWB and CTR_EL0.DIC"
"""What it needs on arm64."""
REFUSAL = "dmemfs: not supported on this host: "
"""Precedes the reason in the kernel's log."""

_PAGES = "on arm64 it needs a kernel with pages of 4 KiB"
_DEVICE = (
    "this kernel's KVM takes memory without struct pages for a device's, and guests stop at their first"
    " instruction; Linux 7.3 does not"
)
_MIGRATION = (
    "on this kernel QEMU would abort when a guest on such memory is migrated or saved; on Linux 7.3 it does not"
)
_CPU = (
    "KVM needs FEAT_S2FWB and CTR_EL0.DIC for memory without struct pages, and a CPU of this host lacks one of them"
)
_OTHERS = "dmemfs is for x86-64 and arm64: elsewhere nobody has tried whether guests can run on it"
_FIRST, _DETECTED = "Booting Linux on physical CPU", "CPU features: detected: "
_FEATURES = {"Stage-2 Force Write-Back", "Instruction cache invalidation not required for I/D coherence"}
"""ARM64_HAS_STAGE2_FWB and ARM64_HAS_CACHE_DIC in the kernel's words (arch/arm64/kernel/cpufeature.c)."""
_BASE_PAGE = os.sysconf("SC_PAGESIZE")


def unsupported(*, base_page: int = _BASE_PAGE, root: Path = kernel.ROOT) -> str:
    """Return why guests cannot run on dmemfs here, a sentence without its end; empty where they can.

    What the CPU lacks is known as long as the kernel's log has its beginning, or the module's refusal of a mount.

    :param base_page: The page size of the host's kernel.
    """
    architecture, version = kernel.architecture(root=root), kernel.version(root=root)
    if architecture == "x86_64":
        return ""
    if architecture != "aarch64":
        return _OTHERS
    if base_page != 4 * KIB:
        return _PAGES
    if version < (6, 17):
        return _DEVICE
    if version < (7, 3):
        return _MIGRATION
    messages = kernel_log.messages(root=root)
    return refused_by(messages) or (_CPU if _cpu_lacks_them(messages) else "")


def _cpu_lacks_them(messages: Sequence[str]) -> bool:
    """Return whether the log, if it is still there from the start, names other features than these two."""
    found = {message.removeprefix(_DETECTED) for message in messages if message.startswith(_DETECTED)}
    return bool(found) and messages[0].startswith(_FIRST) and not found >= _FEATURES


def refused_by(messages: Iterable[str]) -> str:
    """Return the last reason that the module gave in these messages of the kernel; empty: none."""
    reasons = [message.removeprefix(REFUSAL) for message in messages if message.startswith(REFUSAL)]
    return reasons[-1] if reasons else ""
