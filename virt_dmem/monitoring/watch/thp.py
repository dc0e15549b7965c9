# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the switch of transparent huge pages: without them, Linux maps the large pages of dmemfs by 4 KiB."""

from __future__ import annotations

from collections.abc import Iterator

from virt_dmem.monitoring.alert_codes import THP_OFF
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools.backends.dmemfs import large_pages_off

__all__ = ["deviations"]


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield a deviation if they are off on a host with large pages on dmemfs; others may need them to be off."""
    if off := large_pages_off(sight.records, root=sight.root):
        yield Deviation(THP_OFF, "transparent_hugepage", *off)
