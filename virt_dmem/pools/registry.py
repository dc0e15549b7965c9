# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of this host's pools: read only, and by whoever needs no more than what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError, PoolNotFound
from virt_dmem.host import kernel
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.text import POOL_NAME

__all__ = ["NAME", "capacity", "choose", "find", "readable", "records", "segments"]

NAME = POOL_NAME
_TOO_MUCH = 1 << 63
_SEGMENT = re.compile(rf"{NAME.pattern}(\+[0-9]{{1,6}})?", re.ASCII)


def records(config: Config) -> list[PoolRecord]:
    """Return the records of all segments of all pools, by name and number, but for those that cannot be read."""
    return readable(config)[0]


def readable(config: Config) -> tuple[list[PoolRecord], dict[str, PoolError]]:
    """Return the records that can be read, by name and number, and why each of the others (by path) cannot.

    :raise PoolError: When we may not read them.
    """
    found, failed = [], {}
    for path in _files(config):
        try:
            found.append(_read(path))
        except PoolError as failure:
            if isinstance(failure.__cause__, PermissionError):
                raise
            failed[str(path)] = failure
    return sorted(found, key=lambda record: (record.pool, record.number)), failed


def _files(config: Config, pool: str = "") -> Iterator[Path]:
    """Yield the files of all records, or of those of one pool."""
    for path in sorted(config.pool_records_dir.glob("[!.]*.json")):
        if not pool or SegmentId(path.stem).pool == pool:
            yield path


def segments(config: Config, name: str) -> list[PoolRecord]:
    """Return the records of a pool's segments, the first one first; there is at least one.

    :raise PoolNotFound: When there is no such pool, or the name can be none.
    :raise PoolError: When a record cannot be read.
    """
    found = [_read(path) for path in _files(config, name)] if NAME.fullmatch(name) else []
    if not found:
        raise PoolNotFound(
            f"There is no pool {name!r} on this host.", hint="'virt-dmem pool list' shows those there are."
        )
    return sorted(found, key=lambda record: record.number)


def find(config: Config, name: str) -> PoolRecord:
    """Return the record of a pool's first segment.

    :raise PoolNotFound: When there is no such pool, or the name can be none.
    :raise PoolError: When a record cannot be read.
    """
    return segments(config, name)[0]


def choose(config: Config, name: str) -> PoolRecord:
    """Return the record of the pool ``name``; of none, the default pool, or the only one there is.

    :raise PoolNotFound: When there is no such pool, or no way to tell which one.
    """
    if wanted := name or config.default_pool:
        return find(config, wanted)
    there = {record.pool: record for record in reversed(records(config))}
    if len(there) != 1:
        names = ", ".join(sorted(there)) or "none"
        raise PoolNotFound(
            f"The domain names no pool, no default_pool is configured, and this host has {len(there)} ({names}).",
            hint="Name one with --pool." if there else "Make one first: virt-dmem pool create NAME --size SIZE",
        )
    return next(iter(there.values()))


def capacity(record: PoolRecord, *, root: Path = kernel.ROOT) -> dict[int, int]:
    """Return the bytes that a segment really has by node now: 0 where it is not mounted."""
    return backend(record.backend).capacity(record, root=root)


def _read(path: Path) -> PoolRecord:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=PoolRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged(path, str(error)) from error
    if wrong := _wrong(record, path.stem):
        raise _damaged(path, wrong)
    return record


def _damaged(path: Path, why: str) -> PoolError:
    return PoolError(
        f"The pool record {path} cannot be read: {why}.",
        hint="Only root may read it; it is written whole or not at all, so look who changed it. Put it right, or"
        " move it away once nothing of the pool is mounted any more.",
    )


def _wrong(record: PoolRecord, stem: str) -> str:
    """Say what of a record cannot be; empty when nothing."""
    page = record.page_size
    if record.name != stem or not _SEGMENT.fullmatch(record.name):
        return f"it is of {record.name!r}"
    if page <= 0 or page & (page - 1):
        return f"there are no pages of {page} bytes"
    if not record.nodes or any(
        not 0 <= size < _TOO_MUCH
        for share in record.nodes.values()
        for size in (share.wanted_bytes, share.got_bytes)
    ):
        return "its sizes cannot be"
    mount = Path(record.mount)
    if not mount.is_absolute() or mount.name != record.name or ".." in mount.parts:
        return f"{record.mount!r} is no place to mount it"
    return ""
