# SPDX-License-Identifier: GPL-2.0-or-later
"""Grow or shrink a pool while domains run on it.

Where a mount cannot change its size (``remount,size=`` of hugetlbfs succeeds and does nothing) a pool grows by
a segment and shrinks by its empty segments: they are removed, or one of them shrinks. Memory of domains is never
touched. Each step is in a record before it is done; what a kill interrupted is finished by asking for the same size
again, undone by asking for the former one, and settled by ``manage.mount``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from virt_dmem.units import format_size

__all__ = ["resize", "SegmentChange", "Daemon"]

_NEVER_WHOLE = ("creating", "destroying")
"""States of segments of which nothing is kept."""


class Daemon(Protocol):
    """The daemon that allocates memory of the pool meanwhile, and has to be asked first."""

    def retire(self, segment: str) -> None:
        """Stop allocating from ``POOL+N`` until the change ends; raises while domains hold memory of it."""

    def limit(self, pool: str, size_bytes: int) -> int:
        """Let no more than ``size_bytes`` be reserved until the change ends; return the bytes reserved now."""


@dataclass(frozen=True)
class SegmentChange:
    """Change of one segment: bytes by node before (none: it is new) and after (none: it is removed)."""

    segment: str
    before: Mapping[int, int]
    after: Mapping[int, int]
    interrupted: Mapping[int, int] = field(default_factory=dict)
    """What an earlier change that was interrupted was to lead to; empty: there was none."""

    def __str__(self) -> str:
        size, was = format_size(sum(self.after.values())), format_size(sum(self.before.values()))
        if self.after == self.before:
            return self._settled(size)
        if not self.before:
            return f"add segment {self.segment} of {size}{_by_node(self.after)}"
        if not self.after:
            return f"remove segment {self.segment} of {was}{', which was not complete' if self.interrupted else ''}"
        grows = sum(self.after.values()) > sum(self.before.values())
        change = (
            f"{'grow' if grows else 'shrink'} segment {self.segment} to {size}{_by_node(self.after)} from {was}"
        )
        if not self.interrupted:
            return change
        if self.interrupted == self.after:
            return f"{change}, as an interrupted command was to do"
        return f"{change}, instead of the {self._planned} of an interrupted command"

    def _settled(self, size: str) -> str:
        if not self.interrupted:
            return f"give segment {self.segment} its {size} back"
        if self.interrupted == self.after:
            return f"finish the interrupted change of segment {self.segment} to {size}"
        return f"undo the interrupted change of segment {self.segment} to {self._planned}: it keeps {size}"

    @property
    def _planned(self) -> str:
        return format_size(sum(self.interrupted.values()))


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
        first = next(iter(there.values()))
        kind = backend_named(first.backend)
        if kind.elastic(first):
            raise PoolError(
                f"Pool {name} is elastic: its size follows the domains that use it.",
                hint="To change its limits destroy it, and create it again; 'virt-dmem pool show' has them.",
            )
        _require_usable(name, there.values(), root)
        changes = (
            _change_in_place(first, sizes, root)
            if kind.resizes_in_place
            else _changes(config, list(there.values()), sizes, root)
        )
        if dry_run:
            return changes
        work = _Work(config, kind, daemon, report, root)
        work.restore(there, changes)
        for change in changes:
            if kind.resizes_in_place:
                work.resize_in_place(first, change)
            elif not change.before:
                work.grow(first, change)
            elif change.after == change.before or there[change.segment].state in _NEVER_WHOLE:
                work.settle(there[change.segment])
            else:
                work.shrink(there[change.segment], change)
        work.release_surplus(name)
    return changes


def _require_usable(name: str, there: Collection[PoolRecord], root: Path) -> None:
    """Require that each segment is as recorded, or one that a change left, which can be settled.

    :raise PoolError: When one is not, or the pool never was or is no more.
    """
    for record in there:
        if record.state == "ready" and not backend_named(record.backend).mounted(record, root=root):
            raise PoolError(
                f"Segment {record.name} of the pool is not mounted.",
                hint=f"Run 'virt-dmem pool mount {name}' first.",
            )
    if all(record.state in _NEVER_WHOLE for record in there):
        raise PoolError(
            f"Pool {name} was not created or not destroyed completely.",
            hint=f"Run 'virt-dmem pool destroy {name}', which removes what is left of it.",
        )


def _asked(first: PoolRecord, sizes: int | Mapping[int, int], root: Path) -> dict[int, int]:
    return manage.shares_of(
        backend_named(first.backend), first.page_size, sizes, root, least=int(isinstance(sizes, int))
    )


def _change_in_place(record: PoolRecord, sizes: int | Mapping[int, int], root: Path) -> list[SegmentChange]:
    """Return the change that gives a mount its size; ``record`` has no interrupted one any more."""
    kind = backend_named(record.backend)
    asked = _asked(record, sizes, root)
    interrupted = manage.conclude_resize(kind, record, root)
    now = {node: share.wanted_bytes for node, share in record.nodes.items()}
    if asked == now and not interrupted and kind.mounted_bytes(record, root=root) == record.wanted_bytes:
        return []
    return [SegmentChange(record.name, now, asked, interrupted)]


def _changes(
    config: Config, there: list[PoolRecord], sizes: int | Mapping[int, int], root: Path
) -> list[SegmentChange]:
    """Return the changes that lead from the existing segments to ``sizes``, those that free memory first.

    Segments that a command left unfinished are removed if they were never whole, and else finished.
    """
    gone = [record for record in there if record.state in _NEVER_WHOLE]
    there = [record for record in there if record not in gone]
    first = there[0]
    now: Counter[int] = Counter()
    for record in there:
        now.update(_sizes(record))
    asked = _asked(first, sizes, root)
    more = {node: size - now[node] for node, size in asked.items() if size > now[node]}
    less: int | dict[int, int] = {node: now[node] - size for node, size in asked.items() if size < now[node]}
    if isinstance(sizes, int):  # the difference is spread, not what stays in place
        more = manage.evenly(max(0, sizes - now.total()), sorted(now), first.page_size)
        less = max(0, now.total() - sizes)
    freed = _without(there, less, root) if less else []
    if not more and len([change for change in freed if not change.after]) == len(there):
        raise PoolError(
            f"Pool {first.pool} would be empty.", hint=f"Run 'virt-dmem pool destroy {first.pool}' instead."
        )
    changed = {change.segment for change in freed}
    changes = [SegmentChange(record.name, _sizes(record), {}, _sizes(record)) for record in gone] + freed
    changes += [
        SegmentChange(record.name, size, size, size)
        for record in there
        if record.state != "ready" and record.name not in changed
        for size in [_sizes(record)]
    ]
    if more:
        least = max(record.number for record in there) + 1
        going = [change.segment for change in changes if not change.after]
        name = registry.unused(config, first.pool, least, going=going, root=root)
        changes.append(SegmentChange(str(name), {}, more))
    return changes


def _sizes(record: PoolRecord) -> dict[int, int]:
    return {node: share.wanted_bytes for node, share in record.nodes.items()}


def _without(there: list[PoolRecord], less: int | dict[int, int], root: Path) -> list[SegmentChange]:
    """Return how to free ``less`` bytes, in all or of each node, from empty segments, the last one first."""
    changes = []
    wanted = less if isinstance(less, int) else sum(less.values())
    left: Counter[int] = Counter() if isinstance(less, int) else Counter(less)
    empty = [record for record in there if not manage.files_in(record, root)]
    for record in reversed(empty):
        before = _sizes(record)
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
            hint="Shut the domains of a segment down first: it can shrink or be removed only while it is empty"
            f" ('virt-dmem pool show {name}'){_instead(has, asked - wanted)}.",
        )
    return changes


def _instead(has: int, freeable: int) -> str:
    """Return the size that the pool can have now, as a part of a sentence."""
    return f"; or ask for {format_size(has - freeable)}, which it can have now" if freeable else ""


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
            if record.state != "ready":
                continue
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
        kind, job, state = self.kind, self.job(record), record.state
        mounted = kind.mounted_bytes(record, root=self.root)
        if not change.after:
            manage.take_down(self.config, kind, job)
            return
        for node, share in record.nodes.items():
            share.wanted_bytes = change.after.get(node, 0)
        record.state = "mounting"
        job.save()
        try:
            manage.provide(kind, job)
        except BaseException:  # also Ctrl-C
            if kind.mounted_bytes(record, root=self.root) == mounted:  # it came into use meanwhile: restore it
                for node, share in record.nodes.items():
                    share.wanted_bytes = change.before[node]
                record.state = state
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

    def settle(self, record: PoolRecord) -> None:
        """Finish a segment that a command left unfinished, or remove it."""
        self.daemon.retire(f"{record.pool}+{record.number}")
        manage.settle(self.config, record, self.report, self.root)

    def resize_in_place(self, record: PoolRecord, change: SegmentChange) -> None:
        """Change the size of a mount: recorded as intended, agreed with virt-dmemd, done, recorded as done.

        So the recorded size is never less than what domains hold, wherever this is interrupted.
        """
        kind, job = self.kind, self.job(record)
        (node,), (size,) = record.nodes, change.after.values()
        if record.state != "ready":
            if not kind.mounted(record, root=self.root):  # there may be too little memory for the former size
                record.nodes = {node: NodeShare(size)}
            self.settle(record)
        mounted = kind.mounted_bytes(record, root=self.root)
        if mounted == size:  # an interrupted change had come so far, or not begun
            record.nodes = {node: NodeShare(size, size)}
            job.save()
            return
        record.resizing = {node: size}
        if size > record.wanted_bytes:
            kind.check(job)
        job.save()
        try:
            self._require_room(record, size)
            kind.remount(job)
            self._require_room(record, size)  # a virt-dmemd that was started meanwhile knew no limit
        except BaseException:  # also Ctrl-C
            with suppress(DmemError):  # else the record still says what was intended
                if kind.mounted_bytes(record, root=self.root) != mounted:
                    record.resizing = {node: mounted}
                    kind.remount(job)
                record.resizing = {}
                job.save()
            raise
        record.nodes, record.resizing = {node: NodeShare(size)}, {}
        kind.acquire(job)

    def _require_room(self, record: PoolRecord, size: int) -> None:
        """Require that what domains hold now fits into ``size``, and what they are given later will.

        :raise PoolBusy: When it does not.
        """
        held = max(
            self.daemon.limit(record.pool, size),
            sum(path.lstat().st_size for path in manage.files_in(record, self.root)),
        )
        if held > size:
            raise PoolBusy(
                f"Pool {record.pool} of {format_size(record.wanted_bytes)} cannot shrink to {format_size(size)}:"
                f" domains hold {format_size(held)} of it.",
                hint=f"Shut some of these domains down first, or ask for {format_size(held)} or more.",
            )
