# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write the records of segments, ``NAME.json`` each: flat JSON, whatever the backend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError
from virt_dmem.os_errors import explained
from virt_dmem.pool_name import POOL_NAME
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.replaced_file import replace_file, sync_directory

__all__ = ["path_of", "paths", "read", "remove", "write"]

_SIZE_LIMIT = 1 << 63
_UNREADABLE = "A pool record cannot be read"
_LATER = ("elastic", "existing", "of_host", "resizing")
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
    except OSError as error:
        otherwise = _damaged(path, "").hint
        raise explained(error, path, kind=PoolError, otherwise=otherwise, doing=_UNREADABLE) from error
    except msgspec.DecodeError as error:
        raise _damaged(path, str(error)) from error
    if fault := _fault(record, path.stem):
        raise _damaged(path, fault)
    return record


def write(config: Config, record: PoolRecord) -> None:
    """Replace a record on disk; after a power cut either the old or the new one is there.

    :raise PoolError: When it cannot be written; the old one is there.
    """
    path = path_of(config, record.name)
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(_flat(record))) + b"\n")
    except OSError as error:
        raise explained(error, path, kind=PoolError, doing="The record of a pool cannot be written") from error


def remove(config: Config, segment: str) -> None:
    """Remove a segment's record from disk; a missing one is fine.

    :raise PoolError: When it cannot be removed.
    """
    path = path_of(config, segment)
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise explained(error, path, kind=PoolError, doing="The record of a pool cannot be removed") from error


def _flat(record: PoolRecord) -> dict[str, Any]:
    """Return a record's fields, and those of all other backends' records at their defaults.

    Records were always written so; earlier versions read them too. Fields that came later are left out where they
    say nothing, and ignored by earlier versions.
    """
    found: dict[str, Any] = msgspec.structs.asdict(record)
    for kind in BACKENDS.values():
        for field in msgspec.structs.fields(kind.record):
            if field.name not in found:
                factory = field.default_factory
                found[field.name] = field.default if factory is msgspec.NODEFAULT else factory()
    return {name: value for name, value in found.items() if value or name not in _LATER}


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
    sizes = [size for share in record.nodes.values() for size in (share.wanted_bytes, share.got_bytes)]
    sizes += record.resizing.values()
    if (
        not record.resizing.keys() <= record.nodes.keys()
        or not sizes
        or min(sizes) < 0
        or max(sizes) >= _SIZE_LIMIT
    ):
        return "its sizes are impossible"
    mount = Path(record.mount)
    if not mount.is_absolute() or mount.name != record.name or ".." in mount.parts:
        return f"{record.mount!r} is not a valid mount point for it"
    return ""
