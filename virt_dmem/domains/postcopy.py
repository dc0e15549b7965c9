# SPDX-License-Identifier: GPL-2.0-or-later
"""Post-copy migration to memory that cannot do it, refused before it starts.

It wants the kernel to tell QEMU of the first touch of each page (userfaultfd), which needs struct pages. A guest
that was switched over, and whose new host then fails, is lost. On the destination libvirt sets QEMU's capabilities
before it calls the hook ``started`` (``qemuMigrationDstPrepareActive`` in its qemu_migration.c), and no memory has
moved by then: who refuses there leaves the guest where it is. Of how it comes QEMU is told, and no hook.
"""

from __future__ import annotations

import logging
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.config.schema import Config
from virt_dmem.deadline import within
from virt_dmem.errors import DomainRefused
from virt_dmem.hypervisor.processes import find_qemu, waits_for_guest
from virt_dmem.hypervisor.qmp import migration_capabilities

__all__ = ["refuse"]

log = logging.getLogger(__name__)


async def refuse(config: Config, ledger: Ledger, inventory: Inventory, uuid: str) -> None:
    """Refuse a domain that has come to ``started`` if it may come by post-copy, to memory that cannot do that.

    QEMU is asked for such memory only, and only when it waits for a guest: no start waits for it.

    :raise DomainRefused: When it may, or QEMU has no monitor of ours to tell.
    """
    reservation = ledger.find(uuid)
    if reservation is None:
        return
    pools = {extent.pool for extent in reservation.extents if not inventory.has_struct_pages(extent.pool)}
    if not pools:
        return

    def waiting() -> int | None:
        pid = find_qemu(Path(config.libvirt.run_dir), reservation.name, uuid)
        return pid if pid is not None and waits_for_guest(pid) else None

    pid = await within(waiting, f"QEMU of {reservation.name}")
    if pid is None:
        return
    what = (
        f"the memory of pool {min(pools).partition('+')[0]} has no struct pages, and cannot do post-copy migration"
    )
    capabilities = await migration_capabilities(uuid, pid)
    if capabilities is None:
        raise DomainRefused(
            f"Domain {reservation.name} comes by a migration of which QEMU does not say how, and {what}.",
            hint="Let it have the monitor ('virt-dmem apply' without --no-monitor), or another pool here.",
        )
    if "postcopy-ram" in capabilities:
        raise DomainRefused(
            f"Domain {reservation.name} is to come by post-copy, and {what}.",
            hint="Migrate it without --postcopy, or to a pool of huge pages.",
        )
