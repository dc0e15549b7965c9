# SPDX-License-Identifier: GPL-2.0-or-later
"""Locate the two C programs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HELPER", "HOOK_CLIENT"]

HELPER = Path(__file__).with_name("virt-dmem-prefault")
"""Path at which the build, and a wheel, puts the helper."""
HOOK_CLIENT = Path(__file__).with_name("virt-dmem-hook")
"""The same for the hook's program; ``make install`` copies it to where libvirtd may execute it."""
