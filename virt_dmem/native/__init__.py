# SPDX-License-Identifier: GPL-2.0-or-later
"""The one program of ours that is not Python: ``virt-dmem-prefault``, and how it is built."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HELPER"]

HELPER = Path(__file__).with_name("virt-dmem-prefault")
"""Where the build puts the program; wheels carry it there."""
