# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that hold memory without struct pages, and have by now what needs them.

They are refused when they are planned; but which device a network gives an interface is only known at ``start``,
and whatever runs may be given more.
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
    """Refuse a domain that has come to ``start`` with what cannot work on the memory that it was given.

    :raise DomainRefused: Says what it has, and what would have to change.
    """
    if domain.obstacles and (pool := _raw_pool(ledger, inventory, domain.uuid)):
        raise cannot_pin(domain.name, pool, domain.obstacles)


def on_raw_memory(ledger: Ledger, inventory: Inventory, guests: Iterable[Guest]) -> dict[str, str]:
    """Return the UUIDs of guests with such devices on such memory, and the pool of that."""
    suspects = [guest.uuid for guest in guests if guest.obstacles]
    return {uuid: pool for uuid in suspects if (pool := _raw_pool(ledger, inventory, uuid))}


def _raw_pool(ledger: Ledger, inventory: Inventory, uuid: str) -> str:
    """Return the first pool without struct pages that a domain has memory of; empty for none."""
    pools = {extent.pool for extent in ledger.extents_of(uuid)}
    return min((pool.partition("+")[0] for pool in pools if not inventory.has_struct_pages(pool)), default="")
