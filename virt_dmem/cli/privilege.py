# SPDX-License-Identifier: GPL-2.0-or-later
"""Require privileges that a command needs."""

from __future__ import annotations

import os

from virt_dmem.errors import PermissionRefused

__all__ = ["needs_root", "require_root"]


def require_root(what: str) -> None:
    """Raise ``PermissionRefused`` unless root runs the command; ``what`` begins the sentence."""
    if os.geteuid() != 0:
        raise needs_root(what)


def needs_root(what: str) -> PermissionRefused:
    """Return the error for something that only root may do; ``what`` begins the sentence."""
    return PermissionRefused(f"{what} needs root.", hint="Run the command with sudo.")
