# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the record of a segment of huge pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from virt_dmem.pools.record import PoolRecord

__all__ = ["ElasticLimits", "HugetlbfsRecord", "PageCountChange"]

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class ElasticLimits(msgspec.Struct, frozen=True):
    """The limits of an elastic pool: they are in the records of all of its segments."""

    max_bytes: _Count
    """The most that the pool may have, all segments together."""
    min_bytes: _Count
    """What it always has: its first segment."""
    keep_free_bytes: _Count
    """Available memory that the host keeps when the pool takes some."""
    linger_seconds: _Count
    """How long memory that no domain holds stays in the pool."""


class PageCountChange(msgspec.Struct, frozen=True):
    """A change of a node's huge pages in progress: its persistent count goes from one to the other."""

    node: int
    from_pages: int
    to_pages: int


class HugetlbfsRecord(PoolRecord):
    """The record of a segment of huge pages."""

    hvo: bool = True
    """Switch HVO on before memory is taken."""
    switched_hvo: bool = False
    """HVO was off before this pool, or before another one that switched it on and still exists."""
    optimized: bool = False
    """HVO was on when the memory was taken."""
    step: PageCountChange | None = None
    existing: bool = False
    """Take free pages that the host has already, before new ones are allocated."""
    of_host: dict[int, int] = {}  # noqa: RUF012 -- msgspec copies it
    """Bytes of each node, out of those taken, in pages that the host had: it keeps them when the pool ends."""
    elastic: ElasticLimits | None = None
    """Limits of the pool, if it is elastic: its first segment stays, the others come and go with domains."""

    @property
    def on_demand(self) -> bool:
        """It was taken for a domain, and is given back when none needs it."""
        return self.elastic is not None and self.number > 0

    def forget_boot(self, boot_id: str) -> None:
        """Forget what was taken and switched under an earlier boot."""
        super().forget_boot(boot_id)
        self.step, self.switched_hvo, self.of_host = None, False, {}

    def forget(self, gone: Mapping[int, int]) -> None:
        """Forget what the host has taken back, in bytes by node."""
        super().forget(gone)
        self.of_host = {node: min(size, self.nodes[node].got_bytes) for node, size in self.of_host.items()}
