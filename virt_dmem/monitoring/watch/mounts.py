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
        if faults := [*mount_state.faults(record, root=sight.root)]:
            what = ", and ".join(fault.what for fault in faults)
            fix = ", and ".join(fault.fix for fault in faults)
            yield Deviation(
                POOL_MOUNT_CHANGED,
                record.name,
                f"Pool {record.name}, mounted by virt-dmem at {record.mount}, {what}.",
                f"Run {fix}." if fix.startswith("'") else f"{fix[:1].upper()}{fix[1:]}.",
                next((fault.repair for fault in faults if fault.repair), None),
            )
