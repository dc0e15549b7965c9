# SPDX-License-Identifier: GPL-2.0-or-later
"""Find domains on memory without struct pages that have acquired devices which need them.

Such domains are refused when they are planned; but the device that a network assigns to an interface is only known
at ``start``, and more devices can be attached to a running domain.
"""

from __future__ import annotations

from collections.abc import Iterable

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.domain_xml.live import Guest
from virt_dmem.domain_xml.pinning import cannot_pin
from virt_dmem.domain_xml.reader import DomainMemory

__all__ = ["on_raw_memory", "refuse"]


def refuse(ledger: Ledger, inventory: Inventory, domain: DomainMemory) -> None:
    """Refuse, at ``start``, a domain with devices that cannot work on its memory.

    :raise DomainRefused: Names the devices, and what to change.
    """
    if domain.obstacles and (pool := _raw_pool(ledger, inventory, domain.uuid)):
        raise cannot_pin(domain.name, pool, domain.obstacles)


def on_raw_memory(ledger: Ledger, inventory: Inventory, guests: Iterable[Guest]) -> dict[str, str]:
    """Return the UUIDs of guests with such devices on such memory, and the pool of each."""
    suspects = [guest.uuid for guest in guests if guest.obstacles]
    return {uuid: pool for uuid in suspects if (pool := _raw_pool(ledger, inventory, uuid))}


def _raw_pool(ledger: Ledger, inventory: Inventory, uuid: str) -> str:
    """Return the first pool without struct pages that a domain has memory from; empty for none."""
    pools = {extent.segment for extent in ledger.extents_of(uuid)}
    return min((pool.pool for pool in pools if not inventory.has_struct_pages(pool)), default="")
