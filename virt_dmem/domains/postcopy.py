# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse post-copy migration to memory that does not support it, before it starts.

Post-copy needs userfaultfd, and so memory with struct pages. A guest that was switched over, and whose new host
then fails, is lost. On the destination libvirt sets QEMU's migration capabilities before it calls the hook
``started`` (``qemuMigrationDstPrepareActive`` in its qemu_migration.c), and no memory has been transferred by
then: a refusal there leaves the guest on its host. Only QEMU and libvirt know the kind of migration, no hook does.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.config.schema import Config
from virt_dmem.errors import DomainRefused
from virt_dmem.hypervisor.processes import find_qemu, waits_for_guest
from virt_dmem.hypervisor.qmp import migration_capabilities
from virt_dmem.hypervisor.status_file import arrives_by_postcopy
from virt_dmem.runtime.deadline import within

__all__ = ["refuse"]

log = logging.getLogger(__name__)


async def refuse(config: Config, ledger: Ledger, inventory: Inventory, uuid: str) -> None:
    """Refuse, at ``started``, a domain that may arrive by post-copy on memory that does not support it.

    QEMU is asked for such memory only, and only while it waits for an incoming guest: no start waits for it. Where
    it has no second monitor, libvirt's own record of the migration tells.

    :raise DomainRefused: When it may, or that is not known.
    """
    reservation = ledger.find(uuid)
    if reservation is None:
        return
    pools = {extent.segment for extent in reservation.extents if not inventory.has_struct_pages(extent.segment)}
    if not pools:
        return

    def waiting() -> int | None:
        pid = find_qemu(Path(config.libvirt.run_dir), reservation.name, uuid)
        return pid if pid is not None and waits_for_guest(pid) else None

    pid = await within(waiting, f"QEMU of {reservation.name}")
    if pid is None:
        return
    what = f"the memory of pool {min(pools).pool} has no struct pages, which post-copy requires"
    capabilities = await migration_capabilities(uuid, pid)
    if capabilities is not None:
        by_postcopy: bool | None = "postcopy-ram" in capabilities
    else:  # without a second monitor
        run_dir = Path(config.libvirt.run_dir)
        by_postcopy = await asyncio.to_thread(arrives_by_postcopy, run_dir, reservation.name, uuid)
    if by_postcopy is None:
        raise DomainRefused(
            f"Neither QEMU nor libvirt tells whether domain {reservation.name} arrives by post-copy migration, and"
            f" {what}.",
            hint="On the host that it comes from, apply it with the second monitor ('virt-dmem apply' or 'virt-dmem"
            " rewrite', without --no-monitor) and start it anew; or use another pool.",
        )
    if by_postcopy:
        raise DomainRefused(
            f"Domain {reservation.name} is about to arrive by post-copy migration, and {what}.",
            hint="Migrate it without --postcopy, or to a pool of huge pages.",
        )
