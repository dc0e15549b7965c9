# SPDX-License-Identifier: GPL-2.0-or-later
"""Locate the repository."""

from pathlib import Path

__all__ = ["REPOSITORY"]

REPOSITORY = Path(__file__).parents[2]
