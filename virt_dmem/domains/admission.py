# SPDX-License-Identifier: GPL-2.0-or-later
"""Admit domains and memory devices to the pools: plan their memory and charge it in the ledger, or refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, Reservation
from virt_dmem.allocation.plan import Plan, plan_domain
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.reclaim import Reclaimer
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.elastic.growth import Growth
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.pools import extent_files
from virt_dmem.pools.backends.base import ProgressCallback
from virt_dmem.pools.backends.page_counts import describe_gone
from virt_dmem.units import format_size

__all__ = ["Admission"]

T = TypeVar("T")


def _silent(_doing: str, _done_bytes: int, _total_bytes: int) -> None:
    """Report nothing."""


class Admission:
    """Plan memory and charge it. No file is made here.

    :param growth: Takes memory for elastic pools; ``None``: they give only what they have.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        inventory: Inventory,
        prezero: PrezeroCache,
        reclaim: Reclaimer,
        *,
        growth: Growth | None = None,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self._prezero = prezero
        self._reclaim = reclaim
        self._growth = growth

    async def reserve(self, domain: DomainMemory, report: ProgressCallback = _silent) -> Reservation:
        """Charge all memory of a domain that is about to start; an elastic pool may take some from the host for it.

        :param report: Called while that takes time.
        :raise NotEnoughMemory: When it does not fit; names the free bytes and the largest reservation.
        """

        def reserve(plan: Plan) -> None:
            self._ledger.reserve(plan, self._choose_paths(plan), self._inventory.capacity())

        await self._reserve_planned(domain, reserve, report)
        reservation = self._ledger.find(domain.uuid)
        assert reservation is not None  # noqa: S101 -- it was just written
        return reservation

    async def reserve_more(self, domain: DomainMemory) -> tuple[Extent, ...]:
        """Charge a running domain with further memory backends: all those in ``domain``.

        :raise NotEnoughMemory: When they do not fit.
        """

        def reserve(plan: Plan) -> tuple[Extent, ...]:
            return self._ledger.reserve_more(plan, self._choose_paths(plan), self._inventory.capacity())

        return await self._reserve_planned(domain, reserve, _silent)

    async def _reserve_planned(
        self, domain: DomainMemory, reserve: Callable[[Plan], T], report: ProgressCallback
    ) -> T:
        """Plan a domain and reserve that.

        Try again where withheld memory may have come back meanwhile, and where more can be taken from the host.
        """
        growth = self._growth if self._growth and self._growth.concerns(domain) else None
        self._inventory.require_not_draining(domain.pool)
        try:
            return reserve(self._plan(domain))
        except NotEnoughMemory:
            withheld = list(self._inventory.withheld())
            for segment in withheld:
                await self._reclaim.settle(segment)
            if not withheld and not growth:
                raise
        if growth:
            return await growth.reserve(domain, lambda: self._plan(domain), reserve, report)
        return reserve(self._plan(domain))

    def note_start(self, uuid: str, *, succeeded: bool) -> None:
        """Note whether a domain for which memory was reserved has all of it now, or holds nothing any more."""
        if self._growth:
            (self._growth.succeeded if succeeded else self._growth.failed)(uuid)

    def _plan(self, domain: DomainMemory) -> Plan:
        try:
            return self._prezero.plan(domain) or plan_domain(
                domain, self._inventory.free(), self._config.default_pool
            )
        except NotEnoughMemory as error:
            raise NotEnoughMemory(
                error.message,
                hint=f"{describe_gone(self._inventory.gone())}{self._describe_largest()}{self._describe_withheld()}"
                f"{error.hint}",
            ) from error

    def _choose_paths(self, plan: Plan) -> dict[str, Path]:
        """Choose a path for each extent that no quarantined extent of an earlier run occupies."""
        paths = {}
        for extent in plan.extents:
            path = extent_files.path_of(self._inventory.mount(extent.segment), plan.uuid, extent.alias)
            number = 1
            while self._ledger.has_path(path):
                path = path.with_name(f"{extent.alias}+{number}")
                number += 1
            paths[extent.alias] = path
        return paths

    def _describe_largest(self) -> str:
        largest = max(self._ledger.reservations(), key=lambda item: item.size_bytes, default=None)
        if largest is None:
            return ""
        return f"{largest.name} holds the most, {format_size(largest.size_bytes)}. "

    def _describe_withheld(self) -> str:
        """Describe memory that is free in the ledger and not available in the pool."""
        return "".join(
            f"{format_size(withheld.size_bytes)} of {segment} belong to no domain and are not free; most likely"
            " they are pinned. "
            for segment, withheld in sorted(self._inventory.withheld().items())
        )
