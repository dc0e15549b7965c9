# SPDX-License-Identifier: GPL-2.0-or-later
"""Require privileges that a command needs."""

from __future__ import annotations

import os

from virt_dmem.errors import PermissionRefused

__all__ = ["require_root"]


def require_root(what: str) -> None:
    """Raise ``PermissionRefused`` unless root runs the command; ``what`` begins the sentence."""
    if os.geteuid() != 0:
        raise PermissionRefused(f"{what} needs root.", hint="Run the command with sudo.")
