# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the project is."""

from pathlib import Path

__all__ = ["REPOSITORY"]

REPOSITORY = Path(__file__).parents[2]
