# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the mounts of pools."""

from __future__ import annotations

from collections.abc import Iterator

from virt_dmem.host import mounts
from virt_dmem.monitoring.alert_codes import POOL_MOUNT_CHANGED
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools import mount_state, record_files
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["deviations"]


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield each segment whose mount is not as it was made, and each mount of pools that no record has."""
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
    yield from _unrecorded(sight)


def _unrecorded(sight: Sight) -> Iterator[Deviation]:
    """Yield what is mounted where pools are, in sight, and has no record, not even one that cannot be read."""
    top, recorded, table = str(sight.config.pools_dir), None, mounts.mounts(root=sight.root)
    for number, mount in enumerate(table):
        directory, _, name = mount.path.rpartition("/")
        if directory != top or any(f"{mount.path}/".startswith(f"{later.path}/") for later in table[number + 1 :]):
            continue
        recorded = recorded or {path.stem for path in record_files.paths(sight.config)}
        if name not in recorded:
            yield Deviation(
                POOL_MOUNT_CHANGED,
                name,
                f"{mount.path} ({mount.fstype}) is mounted where pools are, and there is no record of it in"
                f" {sight.config.pool_records_dir}: none of its memory is given to domains, or back to the host.",
                f"Restore {name}.json there from a backup, and run 'virt-dmem pool mount {SegmentId(name).pool}'."
                f" Without one, shut down the domains that use it, and 'umount {mount.path}'.",
            )
