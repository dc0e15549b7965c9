# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the two C programs are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HELPER", "HOOK_CLIENT"]

HELPER = Path(__file__).with_name("virt-dmem-prefault")
"""Where the build puts the program; wheels carry it there."""
HOOK_CLIENT = Path(__file__).with_name("virt-dmem-hook")
"""The same for what libvirt's hook runs; ``make install`` puts a copy where libvirtd may run it."""
