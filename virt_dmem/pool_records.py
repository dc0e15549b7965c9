# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of this host's pools: read only, and by whoever needs no more than what they say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from virt_dmem.backends.base import PoolRecord
from virt_dmem.config import Config
from virt_dmem.errors import PoolError, PoolNotFound

__all__ = ["NAME", "choose", "find", "records", "segments"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)


def records(config: Config) -> list[PoolRecord]:
    """Return the records of all segments of all pools, by name and number.

    :raise PoolError: When one cannot be read; names the file.
    """
    found = map(_read, config.pool_records_dir.glob("[!.]*.json"))
    return sorted(found, key=lambda record: (record.pool, record.number))


def segments(config: Config, name: str) -> list[PoolRecord]:
    """Return the records of a pool's segments, the first one first; there is at least one.

    :raise PoolNotFound: When there is no such pool, or the name can be none.
    :raise PoolError: When a record cannot be read.
    """
    found = [record for record in records(config) if record.pool == name] if NAME.fullmatch(name) else []
    if not found:
        raise PoolNotFound(
            f"There is no pool {name!r} on this host.", hint="'virt-dmem pool list' shows those there are."
        )
    return found


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


def _read(path: Path) -> PoolRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PoolRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise PoolError(
            f"The pool record {path} cannot be read: {error}.",
            hint="Only root may read it; it is written whole or not at all, so look who changed it.",
        ) from error
