# SPDX-License-Identifier: GPL-2.0-or-later
"""Define which names a pool may have: one rule for the domain XML, the command line and the records on disk."""

from __future__ import annotations

import re

__all__ = ["POOL_NAME", "POOL_NAME_HINT", "POOL_NAME_LIMIT"]

POOL_NAME_LIMIT = 64
"""Characters. The domain XML always allowed as many (dmem-1.0.rng); with ``+NUMBER`` of a segment behind it, such a
name is far from the 255 bytes that a directory may have."""
POOL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{POOL_NAME_LIMIT - 1}}}", re.ASCII)
POOL_NAME_HINT = f"Use 1 to {POOL_NAME_LIMIT} letters, digits, '_', '.' and '-', starting with a letter or digit."
