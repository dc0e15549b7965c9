# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the command that rewrites a domain: another one where it is transient, which only who creates it can."""

from __future__ import annotations

import os

from virt_dmem.hypervisor.paths import DEFINITIONS_DIR

__all__ = ["how_to_apply", "is_transient"]


def how_to_apply(uuid: str, name: str, options: str = "") -> str:
    """Return the sentence that says how to apply a domain.

    :param options: For that command, as typed.
    """
    words = f" {options}" if options else ""
    if is_transient(name):
        return (
            "It is transient, so create it from XML that was piped through the filter:"
            f" virt-dmem rewrite{words} < XML > REWRITTEN"
        )
    return f"Run: virt-dmem apply {uuid}{words}"


def is_transient(name: str) -> bool:
    """Return whether libvirt has stored no definition of a domain, without asking it: it may wait for us.

    False where that cannot be known: the definitions of another driver or user are elsewhere.
    """
    try:
        return f"{name}.xml" not in os.listdir(DEFINITIONS_DIR)  # noqa: PTH208 -- names only
    except OSError:
        return False
