# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that nobody has reserved: ready for the next domain, or held on its node, and never in the way.

Pre-zeroed extents (``pools.prezeroed_files``) are made for the domains that are likely to start (``forecast``);
what is left is ballast where the nodes need it (``pools.ballast``). All of it counts as free: a reservation takes
what fits, and of the rest the least likely to be needed is given back at once. ``worker`` populates it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace

from virt_dmem.aio import uninterrupted
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, PoolStatus
from virt_dmem.allocation.plan import Plan
from virt_dmem.allocation.prezero.forecast import Target, forecast, plan_on_prezeroed
from virt_dmem.allocation.prezero.index import PrezeroIndex
from virt_dmem.allocation.prezero.job import BackgroundJobs
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.pools import ballast, prezeroed_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent

__all__ = ["PrezeroCache"]


class PrezeroCache:
    """What of each node is not reserved, and who takes it."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory) -> None:
        self._config = config
        self._ledger = ledger
        self._inventory = inventory
        self.stock = PrezeroIndex(inventory, self.likelihood)
        self.chunks = BackgroundJobs()
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By segment: whoever changes files that nobody has reserved has it."""
        self.changed = asyncio.Event()
        """There may be something to bring in or to zero."""
        self._known: dict[str, DomainMemory] = {}
        self._is_told = False
        self._running = ledger.standings()
        self._last_run = ledger.last_steps()
        self._targets: list[Target] = []
        self._is_stale = True

    # Who is likely to start

    def set_domains(self, domains: Iterable[DomainMemory]) -> None:
        """Take note of all domains that are applied, and so may start at any time."""
        self._known = {domain.uuid: domain for domain in domains}
        last_run = self._last_run if self._is_told else self._ledger.last_steps()
        self._last_run = {uuid: at for uuid, at in last_run.items() if uuid in self._known}
        self._is_told = True
        self.look_again()

    def update_domain(self, uuid: str, domain: DomainMemory | None) -> None:
        """Take note that a domain is defined anew; ``None``: it is not applied, or is gone."""
        if domain is None:
            self._known.pop(uuid, None)
            self._last_run.pop(uuid, None)
        else:
            self._known[uuid] = domain
        self.look_again()

    def likelihood(self, uuid: str) -> float:
        """Return how likely a domain is to start: the later it ran, the likelier; 0: never yet; -1: it cannot."""
        cannot = uuid in self._running or (self._is_told and uuid not in self._known)
        return -1.0 if cannot else self._last_run.get(uuid, 0.0)

    def look_again(self) -> None:
        """Take note that what is to be ready may be something else now."""
        self._is_stale = True
        self.changed.set()

    def targets(self) -> list[Target]:
        """Return what is to be ready, the likeliest first, as it was worked out last."""
        return self._targets

    async def update_targets(self) -> None:
        """Work out what is to be ready, if that may have changed; hooks are served between two domains."""
        if not self._is_stale:
            return
        self._is_stale = False
        likely = sorted(
            (domain for uuid, domain in self._known.items() if uuid not in self._running),
            key=lambda domain: (-self.likelihood(domain.uuid), domain.name, domain.uuid),
        )
        if self._config.prefault.ready != "all":
            likely = [domain for domain in likely if self.likelihood(domain.uuid)]
        segments = self.segments()
        free = {
            name: pool
            for name, pool in self._inventory.free().items()
            if any(segment in segments for segment in pool.segments)
        }
        stock = {segment: self.stock.of(segment) for segment in segments}
        most = {pool: self._most(pool) for pool in free}
        found: list[Target] = []
        for some in forecast(likely, free, stock, most, self._config.default_pool):
            found += some
            await asyncio.sleep(0)
        self._targets = found

    def made_for(self, wish: Target) -> PrezeroedExtent | None:
        """Return the ready extent that fulfils a wish, or will when it is done."""
        plan = wish.extent
        found = (Owner(wish.uuid, plan.alias), plan.policy, plan.shares)
        some = self.stock.of_domain_in(plan.pool, wish.uuid)
        return next((item for item in some if (item.owner, item.policy, item.shares) == found), None)

    def segments(self) -> set[str]:
        """Return the segments whose memory is made ready: none where the kernel zeroes ahead by itself."""
        if self._config.prefault.ready == "off":
            return set()
        return {
            name
            for name, record in self._inventory.allocatable().items()
            if backend(record.backend).ready_ahead and not self._inventory.is_draining(record.pool)
        }

    def _most(self, pool: str) -> int:
        capacity = sum(
            size for (name, _), size in self._inventory.capacity().items() if name.partition("+")[0] == pool
        )
        return capacity * self._config.prefault.ready_percent // 100

    def views(self) -> list[PoolStatus]:
        """Return the status of every recorded pool, its pre-zeroed memory included."""
        by_pool = self._ready_bytes()
        return [
            replace(
                view,
                ready_bytes=now,
                ready_goal_bytes=goal,
                ready_most_bytes=0 if policy in {"off", "kernel"} else self._most(view.name),
                ready_policy=policy,
            )
            for view in self._inventory.views()
            for now, goal in [by_pool.get(view.name, (0, 0))]
            for policy in [self._config.prefault.ready if backend(view.backend).ready_ahead else "kernel"]
        ]

    def _ready_bytes(self) -> dict[str, tuple[int, int]]:
        """Return by pool how much is ready now, and how much is to be."""
        now: Counter[str] = Counter()
        goal: Counter[str] = Counter()
        counted = set()
        for wish in self.targets():
            goal[wish.extent.pool.partition("+")[0]] += wish.extent.size_bytes
            counted.add(self.made_for(wish))
        for segment in self._inventory.ready():
            pool = segment.partition("+")[0]
            for extent in self.stock.of(segment):
                now[pool] += extent.clean_bytes
                goal[pool] += extent.goal_bytes if extent not in counted else 0
        free = {
            name: sum(size for nodes in pool.segments.values() for size in nodes.values())
            for name, pool in self._inventory.free().items()
        }
        return {pool: (now[pool], max(now[pool], min(goal[pool], free.get(pool, 0)))) for pool in now | goal}

    # For domains that start and stop

    def plan(self, domain: DomainMemory) -> Plan | None:
        """Return the plan of a domain on the memory made ready for it; ``None`` where there is not enough of it."""
        own = self.stock.of_domain(domain.uuid)
        return plan_on_prezeroed(domain, self._inventory.free(), own, self._config.default_pool) if own else None

    async def provide(self, wanted: Sequence[Extent]) -> dict[int, int]:
        """Let extents that were just reserved have ready memory, and find room for what they lack.

        :return: Of those whose file is there now, by id, how much of it is there and clean, in bytes.
        :raise ExtentError: When a file cannot be put in its place.
        """
        clean = {}
        for extent in wanted:
            async with self.locks[extent.pool]:
                if found := self._best_fit(extent):
                    await self.chunks.stop(extent.pool, found)
                if found := self._best_fit(extent):  # it may just have come to its end
                    self.stock.replace(extent.pool, found, None)
                    take = asyncio.to_thread(prezeroed_files.take, found, extent.path, extent.size_bytes)
                    with contextlib.suppress(FileNotFoundError):  # somebody else emptied the pool
                        clean[extent.id] = await uninterrupted(take)
        for segment in {extent.pool for extent in wanted}:
            await self.make_room(segment)
        self.look_again()
        return clean

    def _best_fit(self, extent: Extent) -> PrezeroedExtent | None:
        wanted = extent.policy, tuple(extent.shares.items()), Owner(extent.uuid, extent.alias)
        for own in self.stock.of_domain_in(extent.pool, extent.uuid):  # few, and mostly the one
            if prezeroed_files.is_foreseen(own, *wanted):
                return own
        return prezeroed_files.best_fit(self.stock.of(extent.pool), *wanted)

    async def make_room(self, segment: str) -> None:
        """Let go of what is reserved by now, so that the extents of its domain find their pages."""
        nodes = ballast.nodes_to_hold(self._inventory.record(segment))
        async with self.locks[segment]:
            free = self._inventory.free_in(segment)
            held = self.stock.held(segment) + self.chunks.growth(segment)
            if nodes or any(size > free.get(node, 0) for node, size in held.items()):
                await self.chunks.stop(segment)
                await self.cut(segment, self.stock.cuts(segment, free))
                await self.let_ballast_go(segment, free)

    async def cut(self, segment: str, cuts: Iterable[tuple[PrezeroedExtent, int]]) -> None:
        """Give back ready memory of a segment; for who has its lock."""

        async def cut_one(extent: PrezeroedExtent, size_bytes: int) -> None:
            self.stock.replace(segment, extent, await asyncio.to_thread(prezeroed_files.cut, extent, size_bytes))

        for extent, size_bytes in cuts:
            await uninterrupted(cut_one(extent, size_bytes))

    async def let_ballast_go(self, segment: str, free: Mapping[int, int]) -> None:
        """Let ballast hold no more than what is free and not ready; for who has the lock of the segment."""
        record = self._inventory.record(segment)
        held = self.stock.held(segment)
        for node in ballast.nodes_to_hold(record):
            await asyncio.to_thread(ballast.let_go, record, node, max(0, free.get(node, 0) - held[node]))

    def given_back(self, extent: Extent) -> None:
        """Take note that an extent's memory is the kernel's again; begin as much anew, for it or another."""
        if extent.uuid in self._known:
            self._last_run[extent.uuid] = time.time()
        self.look_again()
        segment, pool = extent.pool, extent.pool.partition("+")[0]
        whole = extent.state is ExtentState.READY and extent.charged_bytes == extent.size_bytes
        if not whole or segment not in self.segments():
            return
        if self._config.prefault.ready_percent < 100:
            there = [name for name in self.segments() if name.partition("+")[0] == pool]
            goal = sum(one.goal_bytes for name in there for one in self.stock.of(name))
            if goal + extent.size_bytes > self._most(pool):
                return
        shares, owner = tuple(extent.shares.items()), Owner(extent.uuid, extent.alias)
        if any(one.owner == owner for one in self.stock.of_domain_in(segment, extent.uuid)):
            return  # made for it while it ran
        begun = prezeroed_files.begin(self._inventory.record(segment), extent.policy, shares, owner)
        if begun is not None:
            self.stock.add(segment, begun)

    @contextlib.asynccontextmanager
    async def at_rest_in(self, segment: str) -> AsyncIterator[None]:
        """Have no work go on in the background of a segment in this context."""
        self.chunks.pause(segment)
        try:
            async with self.locks[segment]:  # who has it may be about to begin something
                await self.chunks.stop(segment)
            yield
        finally:
            self.chunks.resume(segment)
            self.changed.set()

    # For pools that change

    async def at_rest(self) -> None:
        """Let segments that give no more memory be empty of ours, with nothing at work in them."""
        await self.clear_idle()
        for segment in self._inventory.ready().keys() - self._inventory.allocatable().keys():
            async with self.locks[segment]:  # who has it may be about to begin something
                await self.chunks.stop(segment)

    async def clear_idle(self) -> None:
        """Give back what is ready where nothing is to be."""
        wanted = self.segments()
        for segment in self._inventory.ready():
            if segment not in wanted and self.stock.of(segment):
                async with self.locks[segment]:
                    await self.chunks.stop(segment)
                    await self.cut(segment, [(extent, 0) for extent in self.stock.of(segment)])

    async def fit(self) -> None:
        """Let all fit in the pools, which were read anew and may be smaller, or gone."""
        for segment in self.stock.segments():
            async with self.locks[segment]:
                await self.chunks.stop(segment)
                self.stock.forget(segment)
        self.look_again()
        for segment in list(self._inventory.allocatable()):
            await self.make_room(segment)
