# SPDX-License-Identifier: GPL-2.0-or-later
"""Look up this host's pools by their records; changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError, PoolNotFound
from virt_dmem.host import kernel, mounts
from virt_dmem.pool_name import POOL_NAME
from virt_dmem.pools import record_files
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.text import did_you_mean

__all__ = [
    "records",
    "readable",
    "segments",
    "unused",
    "find",
    "choose",
    "complete",
    "capacity",
    "capacities",
    "shown_state",
]


def records(config: Config) -> list[PoolRecord]:
    """Return the records of all segments, by pool and number, leaving out those that cannot be read."""
    return readable(config)[0]


def complete(config: Config) -> list[PoolRecord]:
    """Return the records of the segments that are set up."""
    return [record for record in records(config) if record.state == "ready"]


def readable(config: Config) -> tuple[list[PoolRecord], dict[str, PoolError]]:
    """Return the records that can be read, by pool and number, and by path why each of the others cannot.

    :raise PoolError: When this process may not read them.
    """
    found, failed = [], {}
    for path in record_files.paths(config):
        try:
            found.append(record_files.read(path))
        except PoolError as failure:
            if isinstance(failure.__cause__, PermissionError):
                raise
            failed[str(path)] = failure
    return sorted(found, key=lambda record: (record.pool, record.number)), failed


def segments(config: Config, name: str) -> list[PoolRecord]:
    """Return the records of a pool's segments, at least one, in order of their numbers.

    :raise PoolNotFound: When there is no such pool, or the name is not valid.
    :raise PoolError: When a record cannot be read.
    """
    found = []
    if POOL_NAME.fullmatch(name):
        found = [record_files.read(path) for path in record_files.paths(config, name)]
    if not found:
        raise PoolNotFound(
            f"There is no pool {name!r} on this host.",
            hint=did_you_mean(name, {record.pool for record in records(config)})
            + "'virt-dmem pool list' lists the pools"
            + (
                f", and 'virt-dmem pool create {name} --size SIZE' creates it."
                if POOL_NAME.fullmatch(name)
                else "."
            ),
        )
    return sorted(found, key=lambda record: record.number)


def unused(
    config: Config, pool: str, least: int, *, going: Collection[str] = (), root: Path = kernel.ROOT
) -> SegmentId:
    """Return the name for a new segment of a pool: none that has a record, or that something is mounted for.

    One that lost its record may have the memory of running guests, which another mount would hide.

    :param least: The least number.
    :param going: Segments that are removed before, so that their names may be used again.
    """
    for number in itertools.count(least):
        segment = SegmentId.of(pool, number)
        if segment in going or (
            not record_files.path_of(config, str(segment)).exists()
            and mounts.mount_at(config.pools_dir.resolve() / segment, root=root) is None
        ):
            return segment
    raise AssertionError("numbers do not end")


def find(config: Config, name: str) -> PoolRecord:
    """Return the record of a pool's first segment.

    :raise PoolNotFound: When there is no such pool, or the name is not valid.
    :raise PoolError: When a record cannot be read.
    """
    return segments(config, name)[0]


def choose(config: Config, name: str) -> PoolRecord:
    """Return the record of pool ``name``; without a name, of the default pool, or of the only pool.

    :raise PoolNotFound: When there is no such pool, or none can be chosen.
    """
    if wanted := name or config.default_pool:
        return find(config, wanted)
    there = {record.pool: record for record in reversed(records(config))}
    if len(there) != 1:
        names = ", ".join(sorted(there)) or "none"
        raise PoolNotFound(
            f"The domain names no pool, no default_pool is configured, and this host has {len(there)} ({names}).",
            hint="Name one with --pool." if there else "Create one first: virt-dmem pool create NAME --size SIZE",
        )
    return next(iter(there.values()))


def capacity(record: PoolRecord, *, root: Path = kernel.ROOT) -> dict[int, int]:
    """Return the bytes that the mount of a segment provides now, by node: 0 where it is not mounted."""
    return backend(record.backend).capacity(record, root=root)


def shown_state(segments: Sequence[PoolRecord]) -> str:
    """Return the state of a pool: the first that is not ``ready`` of its segments.

    Those that an elastic pool takes and gives back for domains leave it ready.
    """
    lasting = [record for record in segments if not backend(record.backend).on_demand(record)]
    return next((record.shown_state for record in lasting or segments if record.shown_state != "ready"), "ready")


def capacities(found: Sequence[PoolRecord], *, root: Path = kernel.ROOT) -> list[dict[int, int]]:
    """Return what each segment provides now, by node: ``capacity``, less what the host took of it."""
    gone = page_counts.gone_by_segment(found, root=root)
    left = []
    for record in found:
        less = gone.get(record.segment, {})
        has = capacity(record, root=root).items()
        left.append({node: max(0, size - less.get(node, 0)) for node, size in has})
    return left
