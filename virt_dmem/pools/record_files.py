# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write the records of segments, ``NAME.json`` each: flat JSON, whatever the backend."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError
from virt_dmem.pool_name import POOL_NAME
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["path_of", "paths", "read", "remove", "write"]

_SIZE_LIMIT = 1 << 63
_LATER = ("existing", "of_host")
_SEGMENT_NAME = re.compile(rf"{POOL_NAME.pattern}(\+[0-9]{{1,6}})?", re.ASCII)


class _Head(msgspec.Struct):
    """The field that selects the type of a record."""

    backend: str


def path_of(config: Config, segment: str) -> Path:
    """Return the path of a segment's record."""
    return config.pool_records_dir / f"{segment}.json"


def paths(config: Config, pool: str = "") -> Iterator[Path]:
    """Yield the paths of all records, or of those of one pool."""
    for path in sorted(config.pool_records_dir.glob("[!.]*.json")):
        if not pool or SegmentId(path.stem).pool == pool:
            yield path


def read(path: Path) -> PoolRecord:
    """Read one record, as the record of its backend.

    :raise PoolError: When it cannot be read, or its content is impossible.
    """
    try:
        content = path.read_bytes()
        kind = BACKENDS.get(msgspec.json.decode(content, type=_Head).backend)
        record = msgspec.json.decode(content, type=kind.record if kind else PoolRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged(path, str(error)) from error
    if fault := _fault(record, path.stem):
        raise _damaged(path, fault)
    return record


def write(config: Config, record: PoolRecord) -> None:
    """Replace a record on disk; after a power cut either the old or the new one is there."""
    path = path_of(config, record.name)
    fresh = path.with_name(f".{record.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor
        file.write(msgspec.json.format(msgspec.json.encode(_flat(record))) + b"\n")
        file.flush()
        os.fsync(fd)
    fresh.replace(path)
    _sync(path.parent)


def remove(config: Config, segment: str) -> None:
    """Remove a segment's record from disk; a missing one is fine."""
    path_of(config, segment).unlink(missing_ok=True)
    _sync(config.pool_records_dir)


def _flat(record: PoolRecord) -> dict[str, Any]:
    """Return a record's fields, and those of all other backends' records at their defaults.

    Records were always written so; earlier versions read them too. Fields that came later are left out at their
    defaults.
    """
    found: dict[str, Any] = msgspec.structs.asdict(record)
    for kind in BACKENDS.values():
        for field in msgspec.structs.fields(kind.record):
            if field.name not in found:
                factory = field.default_factory
                found[field.name] = field.default if factory is msgspec.NODEFAULT else factory()
    return {name: value for name, value in found.items() if value or name not in _LATER}


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: Path, reason: str) -> PoolError:
    return PoolError(
        f"The pool record {path} cannot be read: {reason}.",
        hint="Only root may read it. It is always replaced as a whole, so find out what else changed it."
        " Correct it, or move it away once nothing of the pool is mounted.",
    )


def _fault(record: PoolRecord, stem: str) -> str:
    """Return why a record cannot be true; empty when it can."""
    page = record.page_size
    if record.backend not in BACKENDS:
        return f"there is no backend {record.backend!r}"
    if record.name != stem or not _SEGMENT_NAME.fullmatch(record.name):
        return f"it is the record of {record.name!r}"
    if page <= 0 or page & (page - 1):
        return f"{page} bytes is not a page size"
    if not record.nodes or any(
        not 0 <= size < _SIZE_LIMIT
        for share in record.nodes.values()
        for size in (share.wanted_bytes, share.got_bytes)
    ):
        return "its sizes are impossible"
    mount = Path(record.mount)
    if not mount.is_absolute() or mount.name != record.name or ".." in mount.parts:
        return f"{record.mount!r} is not a valid mount point for it"
    return ""
