# SPDX-License-Identifier: GPL-2.0-or-later
"""Take a segment for an elastic pool, and give it back: what virt-dmem-pages does, under the pools' lock.

The limits are those of the pool's record, whatever is asked for. A segment is made and removed as 'pool resize'
does it: each step is in the segment's own record before it is taken, the only account of its pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError, PoolError
from virt_dmem.host import hvo_bug, kernel
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends import table
from virt_dmem.pools.backends.base import ProgressCallback
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits, HugetlbfsRecord
from virt_dmem.pools.elastic.room import limits_of, room_of
from virt_dmem.pools.lock import locked
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["give_back", "settle", "take"]


def take(
    config: Config,
    pool: str,
    wanted: Mapping[int, int],
    *,
    report: ProgressCallback | None = None,
    root: Path = kernel.ROOT,
) -> SegmentId:
    """Take bytes by node from the host, mount them as a new segment of an elastic pool, and return its name.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolShort: When its limits or the host forbid it; nothing is taken then.
    :raise PoolError: When it is not elastic, not mounted, or the request is not valid; likewise.
    """
    with locked(config):
        there = registry.segments(config, pool)
        first = there[0]
        limits = _require_elastic(first)
        kind = table.backend(first.backend)
        if first.number or first.state != "ready" or not kind.mounted(first, root=root):
            raise PoolError(f"Pool {pool} is not mounted.", hint=f"Run 'virt-dmem pool mount {pool}' first.")
        _require_valid(first, wanted)
        room_of(there, limits, root=root).require(pool, wanted)
        segment = registry.unused(config, pool, 1, root=root)
        record = HugetlbfsRecord(
            name=str(segment),
            backend=first.backend,
            page_size=first.page_size,
            mount=str(config.pools_dir.resolve() / segment),
            nodes={node: NodeShare(size) for node, size in sorted(wanted.items())},
            boot_id=kernel.boot_id(root=root),
            **kind.inherited_settings(first),
        )
        manage.add(config, kind, manage.job_of(config, record, report, root))
        return record.segment


def _require_elastic(record: PoolRecord) -> ElasticLimits:
    limits = limits_of(record)
    if limits is None:
        raise PoolError(
            f"Pool {record.pool} is not elastic.", hint="Its size is changed by 'virt-dmem pool resize' only."
        )
    return limits


def _require_valid(first: PoolRecord, wanted: Mapping[int, int]) -> None:
    if not wanted or any(
        node not in first.nodes or size <= 0 or size % first.page_size for node, size in wanted.items()
    ):
        raise PoolError(
            f"Pool {first.pool} cannot take these bytes by node: {dict(sorted(wanted.items()))}.",
            hint="They have to be whole pages, of nodes that the pool may use.",
        )


def give_back(
    config: Config, segment: SegmentId, *, report: ProgressCallback | None = None, root: Path = kernel.ROOT
) -> None:
    """Unmount a segment that was taken for a domain, and give its pages back to the host.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolBusy: When there are files in it, or processes use it; it is left as it was.
    :raise PoolError: When it is not such a segment, or memory could not be given back; repeat it then.
    """
    with locked(config):
        there = {record.name: record for record in registry.segments(config, segment.pool)}
        record = there.get(str(segment))
        if record is None:
            return
        kind = table.backend(record.backend)
        if not kind.on_demand(record):
            raise PoolError(
                f"Segment {segment} was not taken for a domain.",
                hint="Memory of fixed pools, and what an elastic one always has, is given back by root only.",
            )
        if kind.freeing(record, root=root) is hvo_bug.Verdict.BAD:
            raise PoolError(
                f"Linux {kernel.release(root=root)} would lose the huge pages of segment {segment} when they are"
                " freed: they stay in the pool.",
                hint="'virt-dmem check', line hvo, says which kernels free them.",
            )
        manage.refuse_if_used(record, root)
        manage.take_down(config, kind, manage.job_of(config, record, report, root))


def settle(config: Config, *, root: Path = kernel.ROOT) -> list[DmemError]:
    """Undo segments that were never whole, that were half given back, or that are of an earlier boot.

    For the start of virt-dmem-pages, which may have been killed at any step. Return what could not be undone.
    """
    failures: list[DmemError] = []
    with locked(config):
        booted = kernel.boot_id(root=root)
        for record in registry.records(config):
            kind = table.backend(record.backend)
            if not kind.on_demand(record) or (record.state == "ready" and record.boot_id == booted):
                continue
            try:
                manage.refuse_if_used(record, root)
                manage.settle(config, record, None, root)
            except DmemError as failure:
                failures.append(failure)
    return failures
