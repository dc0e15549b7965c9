# SPDX-License-Identifier: GPL-2.0-or-later
"""Grow or shrink a pool while domains run on it.

Where a mount cannot change its size (``remount,size=`` of hugetlbfs succeeds and does nothing) a pool grows by
a segment and shrinks by its empty segments: they are removed, or one of them shrinks. Memory of domains is never
touched. Each step is in a record before it is done; what a kill interrupted is finished by ``manage.mount``, or by
asking for the same size again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError, PoolBusy, PoolError, PoolShort
from virt_dmem.host import kernel
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.base import Backend, Job, ProgressCallback
from virt_dmem.pools.backends.table import backend as backend_named
from virt_dmem.pools.lock import locked
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import format_size

__all__ = ["resize", "SegmentChange", "Daemon"]


class Daemon(Protocol):
    """The daemon that allocates memory of the pool meanwhile, and has to be asked first."""

    def retire(self, segment: str) -> None:
        """Stop allocating from ``POOL+N``; raises while domains hold memory of it."""

    def reserved(self, pool: str) -> int:
        """Have the records read again; return the bytes reserved after that."""


@dataclass(frozen=True)
class SegmentChange:
    """Change of one segment: bytes by node before (none: it is new) and after (none: it is removed)."""

    segment: str
    before: Mapping[int, int]
    after: Mapping[int, int]

    def __str__(self) -> str:
        size, was = format_size(sum(self.after.values())), format_size(sum(self.before.values()))
        if not self.before:
            return f"add segment {self.segment} of {size}{_by_node(self.after)}"
        if not self.after:
            return f"remove segment {self.segment} of {was}"
        grows = sum(self.after.values()) > sum(self.before.values())
        return f"{'grow' if grows else 'shrink'} segment {self.segment} to {size}{_by_node(self.after)} from {was}"


def _by_node(sizes: Mapping[int, int]) -> str:
    named = [f"{format_size(size)} of node {node}" for node, size in sizes.items() if node >= 0]
    return f" ({', '.join(named)})" if len(named) > 1 else f" of node {next(iter(sizes))}" if named else ""


def resize(
    config: Config,
    name: str,
    *,
    sizes: int | Mapping[int, int],
    daemon: Daemon,
    report: ProgressCallback | None = None,
    dry_run: bool = False,
    root: Path = kernel.ROOT,
) -> list[SegmentChange]:
    """Give a pool ``sizes``, and return what was (``dry_run``: would be) changed, in order.

    :param sizes: Bytes in all, or bytes by node; nodes that are not named stay as they are.
    :raise PoolNotFound: When there is no such pool.
    :raise UsageError: When a size is no whole number of pages, or a node has no memory.
    :raise PoolBusy: When domains hold too much of it, and nothing was changed; or when a process uses it.
    :raise PoolShort: When the host has not enough memory to grow it.
    :raise PoolError: When the pool is not as recorded, or the kernel rejects it.
    """
    with locked(config):
        there = {record.name: record for record in registry.segments(config, name)}
        for record in there.values():
            mounted = backend_named(record.backend).mounted(record, root=root)
            if record.state != "ready" or not mounted:
                raise PoolError(
                    f"Segment {record.name} of the pool is {record.state}{'' if mounted else ', and not mounted'}.",
                    hint=f"Run 'virt-dmem pool mount {name}' first.",
                )
        first = next(iter(there.values()))
        changes = _changes(list(there.values()), sizes, root)
        if dry_run:
            return changes
        work = _Work(config, backend_named(first.backend), daemon, report, root)
        work.restore(there, changes)
        for change in changes:
            if work.kind.resizes_in_place:
                work.resize_in_place(first, change)
            elif change.before:
                work.shrink(there[change.segment], change)
            else:
                work.grow(first, change)
        work.release_surplus(name)
    return changes


def _changes(there: list[PoolRecord], sizes: int | Mapping[int, int], root: Path) -> list[SegmentChange]:
    """Return the changes that lead from the existing segments to ``sizes``, those that free memory first."""
    first = there[0]
    kind = backend_named(first.backend)
    now: Counter[int] = Counter()
    for record in there:
        now.update({node: share.wanted_bytes for node, share in record.nodes.items()})
    asked = manage.shares_of(kind, first.page_size, sizes, root, least=int(isinstance(sizes, int)))
    more = {node: size - now[node] for node, size in asked.items() if size > now[node]}
    less: int | dict[int, int] = {node: now[node] - size for node, size in asked.items() if size < now[node]}
    if isinstance(sizes, int):  # the difference is spread, not what stays in place
        more = manage.evenly(max(0, sizes - now.total()), sorted(now), first.page_size)
        less = max(0, now.total() - sizes)
    if kind.resizes_in_place:
        return [SegmentChange(first.name, dict(now), asked)] if asked != now else []
    changes = _without(there, less, root) if less else []
    if more:
        number = max(record.number for record in there) + 1
        changes.append(SegmentChange(str(SegmentId.of(first.pool, number)), {}, more))
    if not more and len([change for change in changes if not change.after]) == len(there):
        raise PoolError(
            f"Pool {first.pool} would be empty.", hint=f"Run 'virt-dmem pool destroy {first.pool}' instead."
        )
    return changes


def _without(there: list[PoolRecord], less: int | dict[int, int], root: Path) -> list[SegmentChange]:
    """Return how to free ``less`` bytes, in all or of each node, from empty segments, the last one first."""
    changes = []
    wanted = less if isinstance(less, int) else sum(less.values())
    left: Counter[int] = Counter() if isinstance(less, int) else Counter(less)
    empty = [record for record in there if not manage.files_in(record, root)]
    for record in reversed(empty):
        before = {node: share.wanted_bytes for node, share in record.nodes.items()}
        if isinstance(less, int):
            takes = _evenly_from(before, wanted, record.page_size)
        else:
            takes = {node: min(size, left[node]) for node, size in before.items()}
            left.subtract(takes)
        if any(takes.values()):
            after = {node: size - takes.get(node, 0) for node, size in before.items()}
            changes.append(SegmentChange(record.name, before, {node: size for node, size in after.items() if size}))
            wanted -= sum(takes.values())
    if wanted:
        name, used = there[0].pool, [record for record in there if record not in empty]
        has = sum(record.wanted_bytes for record in there)
        asked = less if isinstance(less, int) else sum(less.values())
        kept = ", ".join(f"{record.name} of {format_size(record.wanted_bytes)}" for record in used)
        held = sum(path.lstat().st_size for record in used for path in manage.files_in(record, root))
        raise PoolBusy(
            f"Pool {name} of {format_size(has)} cannot give back {format_size(asked)}"
            f"{'' if isinstance(less, int) else ' of these nodes'}: domains hold {format_size(held)} in segment"
            f" {kept}, and the others can free only {format_size(asked - wanted)}.",
            hint="Shut these domains down first: a segment can shrink or be removed only while it is empty.",
        )
    return changes


def _evenly_from(sizes: Mapping[int, int], most: int, page_size: int) -> dict[int, int]:
    """Return the bytes to take of each node, at most ``most`` in all, leaving the rest spread evenly."""
    keep = max(0, sum(sizes.values()) - most) // page_size
    takes = {}
    for done, node in enumerate(sorted(sizes, key=lambda node: (sizes[node], node))):
        kept = min(sizes[node] // page_size, keep // (len(sizes) - done))
        takes[node] = sizes[node] - kept * page_size
        keep -= kept
    return takes


@dataclass(frozen=True)
class _Work:
    """Carry out the changes of one resize."""

    config: Config
    kind: Backend[Any]
    daemon: Daemon
    report: ProgressCallback | None
    root: Path

    def job(self, record: PoolRecord) -> Job[Any]:
        """Return the job of changing a segment."""
        return manage.job_of(self.config, record, self.report, self.root)

    def restore(self, there: Mapping[str, PoolRecord], changes: Sequence[SegmentChange]) -> None:
        """Take again what the host has of the pool; if that fails, the pool can only shrink, to what is left.

        :raise PoolShort: When it would be more; nothing was changed.
        """
        after = {change.segment: change.after for change in changes}
        for name, record in there.items():
            job = self.job(record)
            try:
                self.kind.restore(job)
            except PoolShort:
                gone = self.kind.gone(job)
                has = {node: share.got_bytes - gone.get(node, 0) for node, share in record.nodes.items()}
                if after.keys() - there.keys() or any(
                    size > has[node] for node, size in after.get(name, {}).items()
                ):
                    raise

    def shrink(self, record: PoolRecord, change: SegmentChange) -> None:
        """Remove an empty segment, or give it less."""
        self.daemon.retire(f"{record.pool}+{record.number}")
        manage.refuse_if_used(record, self.root)
        kind, job = self.kind, self.job(record)
        if not change.after:
            manage.take_down(self.config, kind, job)
            return
        for node, share in record.nodes.items():
            share.wanted_bytes = change.after.get(node, 0)
        record.state = "mounting"
        job.save()
        try:
            manage.provide(kind, job)
        except DmemError:
            if kind.mounted(record, root=self.root):  # it came into use meanwhile: restore it
                for node, share in record.nodes.items():
                    share.wanted_bytes = change.before[node]
                record.state = "ready"
                job.save()
            raise

    def release_surplus(self, name: str) -> None:
        """Give back memory that could not be given back when its segment shrank."""
        left = 0
        for record in registry.segments(self.config, name):
            job = self.job(record)
            if record.got_bytes > record.wanted_bytes:
                left += self.kind.release(job, keep_wanted=True)
            shares = {node: share for node, share in record.nodes.items() if share.wanted_bytes or share.got_bytes}
            if shares != record.nodes:
                record.nodes = shares
                job.save()
        if left:
            raise PoolError(
                f"Pool {name} has the size that was asked for, but {format_size(left)} could not be given back"
                " to the host: a process or a device uses pages of it (one pinned page keeps all of a segment), or"
                " memory for their struct pages is missing.",
                hint="Stop what uses them or free memory, then ask for the same size again; 'virt-dmem explain"
                " memory-pinned' says what may pin pages.",
            )

    def grow(self, first: PoolRecord, change: SegmentChange) -> None:
        """Add a segment."""
        record = self.kind.record(
            name=change.segment,
            backend=first.backend,
            page_size=first.page_size,
            mount=str(self.config.pools_dir.resolve() / change.segment),
            nodes={node: NodeShare(size) for node, size in change.after.items()},
            boot_id=kernel.boot_id(root=self.root),
            **self.kind.inherited_settings(first),
        )
        manage.add(self.config, self.kind, self.job(record))

    def resize_in_place(self, record: PoolRecord, change: SegmentChange) -> None:
        """Change the size of a mount; a smaller one is recorded first, so that all later reservations fit."""
        kind, job = self.kind, self.job(record)
        (node,) = record.nodes
        before, after = change.before[node], change.after[node]
        record.nodes[node] = NodeShare(after, min(before, after))
        try:
            if after > before:
                kind.check(job)
            job.save()
            held = max(
                self.daemon.reserved(record.pool),
                sum(path.lstat().st_size for path in manage.files_in(record, self.root)),
            )
            if held > after:
                raise PoolBusy(
                    f"Pool {record.pool} of {format_size(before)} cannot shrink to {format_size(after)}: domains"
                    f" hold {format_size(held)} of it.",
                    hint=f"Shut some of these domains down first, or ask for {format_size(held)} or more.",
                )
            kind.remount(job)
        except DmemError:
            record.nodes[node] = NodeShare(before, before)
            job.save()
            raise
        kind.acquire(job)
