# SPDX-License-Identifier: GPL-2.0-or-later
"""Check a domain's memory against what a pool offers: page size, locked memory, memory that can be pinned."""

from __future__ import annotations

from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.pinning import cannot_pin
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import DomainRefused
from virt_dmem.units import KIB, MIB, round_up

__all__ = ["require_whole_pages", "require_possible", "memory_not_lockable"]


def require_whole_pages(name: str, cells: tuple[Cell, ...], page_size: int) -> None:
    """Refuse the domain ``name`` unless each of its memory backends is a multiple of ``page_size`` bytes.

    The blocks of a virtio-mem device must not be smaller than a page either: QEMU refuses that.

    :raise DomainRefused: Names the first that is not, and the nearest sizes that would do.
    """
    for cell in cells:
        below, above = cell.size_bytes // page_size * page_size, round_up(cell.size_bytes, page_size)
        if below != above:
            nearest = f"{_exact(below)} or {_exact(above)}" if below else _exact(above)
            raise DomainRefused(
                f"{cell.alias or 'The memory'} of domain {name!r} has {_exact(cell.size_bytes)}, which is not a "
                f"multiple of the page size {_exact(page_size)}.",
                hint=f"Give it {nearest}, or use a pool with smaller pages.",
            )
        if 0 < cell.block_bytes < page_size:
            raise DomainRefused(
                f"{cell.alias or 'The memory'} of domain {name!r} has blocks of {_exact(cell.block_bytes)}, less "
                f"than the page size {_exact(page_size)}.",
                hint=f"Give it blocks of {_exact(page_size)}, or use a pool with smaller pages.",
            )


def require_possible(memory: DomainMemory, pool: str, *, may_lock: bool, may_pin: bool) -> None:
    """Refuse a domain that needs a property which the memory of ``pool`` does not have.

    ``may_lock``: it is never swapped, and can be locked. ``may_pin``: it has struct pages.

    :raise DomainRefused: Names the need and what to change.
    """
    if memory.locked and not may_lock:
        raise memory_not_lockable(memory.name, pool, swapped=may_pin)
    if memory.obstacles and not may_pin:
        raise cannot_pin(memory.name, pool, memory.obstacles)


def memory_not_lockable(name: str, pool: str, *, swapped: bool = True) -> DomainRefused:
    """Return the refusal of the domain ``name`` with locked memory in a ``pool``.

    ``swapped``: the host may swap its memory; else there is nothing to lock, as it has no struct pages.
    """
    if not swapped:
        return DomainRefused(
            f"Domain {name!r} has locked memory, and memory of pool {pool or 'default'!r} cannot be locked: it has"
            " no struct pages, and the host never swaps it anyway.",
            hint="Remove <locked/> from its <memoryBacking>.",
        )
    return DomainRefused(
        f"Domain {name!r} has locked memory, and the host may swap memory of pool {pool or 'default'!r}.",
        hint="Use a pool of huge pages, or remove <locked/> from its <memoryBacking>.",
    )


def _exact(size_bytes: int) -> str:
    for factor, unit in ((MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} B"
