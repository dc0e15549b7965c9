# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the mounts of pools."""

from __future__ import annotations

from collections.abc import Iterator

from virt_dmem.monitoring.alert_codes import POOL_MOUNT_CHANGED
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools import mount_state

__all__ = ["deviations"]


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield each segment whose mount is not as it was made."""
    for record in sight.records:
        for fault in mount_state.faults(record, root=sight.root):
            yield Deviation(
                POOL_MOUNT_CHANGED,
                record.name,
                f"Pool {record.name}, mounted by virt-dmem at {record.mount}, {fault.what}.",
                f"{fault.fix[:1].upper()}{fault.fix[1:]}." if fault.fix[0] != "'" else f"Run {fault.fix}.",
                fault.repair,
            )
