# SPDX-License-Identifier: GPL-2.0-or-later
"""List what others can change on the host; docs/guide/operations.md has the same table, with what is put right."""

from __future__ import annotations

from virt_dmem.monitoring.watch import huge_pages
from virt_dmem.monitoring.watch.base import Watch

__all__ = ["WATCHES"]

WATCHES = (Watch("huge pages", huge_pages.deviations),)
