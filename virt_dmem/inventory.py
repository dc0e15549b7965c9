# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pools of this host have, and what of it is free.

Free is capacity less reservations, never what statfs says: pages that a guest gave back through its balloon
stay the guest's.
"""

from __future__ import annotations

from pathlib import Path

from virt_dmem import pools
from virt_dmem.backends import backend
from virt_dmem.config import Config
from virt_dmem.errors import PoolBusy, PoolNotFound
from virt_dmem.ipc.messages import NodeView, PoolView
from virt_dmem.ledger import Ledger
from virt_dmem.plan import PoolFree
from virt_dmem.pools import PoolRecord
from virt_dmem.units import format_size

__all__ = ["Inventory"]


class Inventory:
    """The pools as recorded on disk and as mounted; ``refresh`` reads the records again."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._records: dict[str, PoolRecord] = {}
        self._retiring: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the records again; a pool that is being destroyed gives no memory any more."""
        self._records = {record.name: record for record in pools.records(self._config)}
        self._retiring.clear()

    def record(self, name: str) -> PoolRecord:
        """Return the record of a pool.

        :raise PoolNotFound: When there is none.
        """
        if name not in self._records:
            raise PoolNotFound(
                f"There is no pool {name!r} on this host.", hint="'virt-dmem pool list' shows those there are."
            )
        return self._records[name]

    def mount(self, name: str) -> Path:
        """Return where a pool is mounted."""
        return Path(self.record(name).mount)

    def nodes(self, name: str) -> list[int]:
        """Return the host nodes that a pool has memory of; -1 alone where its backend has none."""
        return sorted(pools.capacity(self.record(name)))

    def zeroes_on_allocation(self, name: str) -> bool:
        """Tell whether memory of a pool is handed out clean by the kernel; of a pool that is gone, it is."""
        record = self._records.get(name)
        return record is None or backend(record.backend).zeroes_on_allocation

    def usable(self) -> dict[str, PoolRecord]:
        """Return the pools that memory may be taken from."""
        return {
            name: record
            for name, record in self._records.items()
            if record.state == "ready" and name not in self._retiring
        }

    def capacity(self) -> dict[tuple[str, int], int]:
        """Return the bytes that each (pool, node) really has now."""
        return {
            (name, node): size
            for name, record in self.usable().items()
            for node, size in pools.capacity(record).items()
        }

    def free(self) -> dict[str, PoolFree]:
        """Return what may still be reserved, by pool and node; never negative."""
        reserved = self._ledger.reserved()
        capacity = self.capacity()
        return {
            name: PoolFree(
                name=name,
                backend=record.backend,
                page_size=record.page_size,
                free_bytes={
                    node: max(0, size - reserved.get(key, 0))
                    for key, size in capacity.items()
                    for pool, node in [key]
                    if pool == name
                },
            )
            for name, record in self.usable().items()
        }

    def retire(self, name: str) -> None:
        """Give no more memory from a pool; the next ``refresh`` takes this back if it still exists then.

        :raise PoolNotFound: When there is none.
        :raise PoolBusy: When memory of it is reserved; names the holders.
        """
        self.record(name)
        held = self._ledger.extents_in(name)
        if held:
            names = {reservation.uuid: reservation.name for reservation in self._ledger.reservations()}
            holders = sorted({names.get(extent.uuid, extent.uuid) for extent in held})
            raise PoolBusy(
                f"Pool {name} holds {format_size(sum(extent.size_bytes for extent in held))} of"
                f" {len(holders)} domains: {', '.join(holders)}.",
                hint="Stop these domains first; 'virt-dmem show DOMAIN' tells what each holds.",
            )
        self._retiring.add(name)

    def views(self) -> list[PoolView]:
        """Return every recorded pool, as the control socket shows it."""
        reserved = self._ledger.reserved()
        return [
            self._view(record, reserved) for record in sorted(self._records.values(), key=lambda item: item.name)
        ]

    def _view(self, record: PoolRecord, reserved: dict[tuple[str, int], int]) -> PoolView:
        nodes = [
            NodeView(node, size, held := reserved.get((record.name, node), 0), max(0, size - held))
            for node, size in sorted(pools.capacity(record).items())
        ]
        return PoolView(
            name=record.name,
            backend=record.backend,
            page_size=record.page_size,
            mount=str(record.mount),
            state="retiring" if record.name in self._retiring else record.state,
            capacity_bytes=sum(node.capacity_bytes for node in nodes),
            reserved_bytes=sum(node.reserved_bytes for node in nodes),
            free_bytes=sum(node.free_bytes for node in nodes),
            nodes=nodes,
        )
