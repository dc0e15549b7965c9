# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep pre-zeroed extents: files that are populated and zeroed ahead, until a starting domain takes one.

They lie in ``<mount>/.ready``. The name of each is its record, which lasts as long as its memory does and is
changed by renaming, atomically; numbers in it are pages, in hexadecimal::

    n200_bind_0=100,1=100_UUID_ALIAS    200 pages are zeroed, of the 100 + 100 that it grows to

``UUID`` and ``ALIAS`` are of the memory backend that it was created for; another one may take it. All of its memory
came from the kernel, which zeroed it: no file that a guest had ever becomes one of these. What a crash leaves
beyond the zeroed part is truncated before the file is used again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from virt_dmem.pools import extent_files
from virt_dmem.pools.prefault import prefault
from virt_dmem.pools.record import PoolRecord

__all__ = [
    "PrezeroedExtent",
    "Owner",
    "Shares",
    "scan",
    "create",
    "zero_more",
    "next_chunk",
    "take",
    "truncate",
    "truncated",
    "clear",
    "best_fit",
    "is_exact_fit",
    "held_by_node",
    "keepable_bytes",
    "prefix",
    "DIRECTORY",
]

log = logging.getLogger(__name__)

DIRECTORY = ".ready"
_NAME = re.compile(
    r"n(?P<zeroed>[0-9a-f]+)_(?P<policy>none|bind|preferred|interleave)"
    r"_(?P<shares>-?\d+=[0-9a-f]+(,-?\d+=[0-9a-f]+)*)_(?P<uuid>[0-9a-f-]{36})_(?P<alias>[^/]+)"
)
_LONGEST_NAME = 255

Shares = tuple[tuple[int, int], ...]
"""Node and bytes, in their order in the file, except where it is interleaved."""


class Owner(NamedTuple):
    """Identify a memory backend by the UUID of its domain and its alias."""

    uuid: str
    alias: str


@dataclass(frozen=True)
class PrezeroedExtent:
    """Describe one file; its first ``zeroed_bytes`` are populated and zero."""

    directory: Path
    zeroed_bytes: int
    policy: str
    shares: Shares
    """Its shares when it is complete."""
    owner: Owner
    page_size: int

    @cached_property
    def path(self) -> Path:
        """Return its path, whose name is its record."""
        shares = ",".join(f"{node}={size // self.page_size:x}" for node, size in self.shares)
        zeroed = self.zeroed_bytes // self.page_size
        return self.directory / f"n{zeroed:x}_{self.policy}_{shares}_{self.owner.uuid}_{self.owner.alias}"

    @property
    def target_bytes(self) -> int:
        """Return its size when it is complete."""
        return sum(size for _, size in self.shares)

    @property
    def is_complete(self) -> bool:
        """Tell whether all of it is populated and zeroed."""
        return self.zeroed_bytes == self.target_bytes


def prefix(shares: Shares, size_bytes: int) -> Shares:
    """Return the shares of the first ``size_bytes`` of a file that is not interleaved."""
    found = []
    for node, size in shares:
        if size_bytes > 0:
            found.append((node, min(size, size_bytes)))
        size_bytes -= size
    return tuple(found)


def held_by_node(extents: Iterable[PrezeroedExtent]) -> Counter[int]:
    """Return the memory that pre-zeroed extents hold, in bytes by node."""
    held: Counter[int] = Counter()
    for extent in extents:
        if extent.policy != "interleave":
            held.update(dict(prefix(extent.shares, extent.zeroed_bytes)))
            continue
        pages, more = divmod(extent.zeroed_bytes // extent.page_size, len(extent.shares))
        held.update(
            {node: (pages + (at < more)) * extent.page_size for at, (node, _) in enumerate(sorted(extent.shares))}
        )
    return held


def scan(record: PoolRecord) -> list[PrezeroedExtent]:
    """Return the pre-zeroed extents of a segment; truncate unfinished chunks, remove files without a valid name."""
    directory = Path(record.mount, DIRECTORY)
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        extent = _read(path, record.page_size)
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode) or extent is None or there.st_size < extent.zeroed_bytes:
            _discard(path)
            continue
        if there.st_size > extent.zeroed_bytes:
            os.truncate(path, extent.zeroed_bytes)
        found.append(extent)
    return found


def _discard(path: Path) -> None:
    """Remove a file without a valid name; one that cannot be removed is left, and ``segment_files`` counts it."""
    try:
        path.unlink()
    except OSError as error:
        log.warning("cannot remove %r from the pre-zeroed memory: %s", str(path), error)


def _read(path: Path, page_size: int) -> PrezeroedExtent | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    shares = tuple(
        (int(node), int(pages, 16) * page_size)
        for node, pages in (share.split("=") for share in match["shares"].split(","))
    )
    extent = PrezeroedExtent(
        directory=path.parent,
        zeroed_bytes=int(match["zeroed"], 16) * page_size,
        policy=match["policy"],
        shares=shares,
        owner=Owner(match["uuid"], match["alias"]),
        page_size=page_size,
    )
    return extent if extent.zeroed_bytes <= extent.target_bytes else None


def create(record: PoolRecord, policy: str, shares: Shares, owner: Owner) -> PrezeroedExtent | None:
    """Create the empty file of a new one; return ``None`` where it has too many nodes for a file name."""
    extent = PrezeroedExtent(Path(record.mount, DIRECTORY), 0, policy, shares, owner, record.page_size)
    if len(extent.path.name) > _LONGEST_NAME:
        return None
    extent.directory.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(extent.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return extent


def clear(record: PoolRecord) -> None:
    """Remove all pre-zeroed extents of a segment, while no daemon runs."""
    for extent in scan(record):
        truncate(extent, 0)


async def zero_more(
    extent: PrezeroedExtent, most_bytes: int, *, threads: int = 0, helper: Path | None = None
) -> PrezeroedExtent:
    """Populate the next chunk of an extent, at most ``most_bytes`` or one page; if cancelled, undo the chunk.

    :raise PrefaultFailed: When the pool lacks the memory, or populating it failed.
    """
    offset = extent.zeroed_bytes
    size, policy, nodes = next_chunk(extent, most_bytes)
    os.truncate(extent.path, offset)
    os.truncate(extent.path, offset + size)
    try:
        steps = prefault(
            extent.path,
            offset_bytes=offset,
            size_bytes=size,
            page_size=extent.page_size,
            policy=policy,
            nodes=nodes,
            threads=threads,
            helper=helper,
            gentle=True,
        )
        async with contextlib.aclosing(steps):
            async for _ in steps:
                pass
    except BaseException:
        os.truncate(extent.path, offset)
        raise
    return _renamed(extent, replace(extent, zeroed_bytes=offset + size))


def next_chunk(extent: PrezeroedExtent, most_bytes: int) -> tuple[int, str, tuple[int, ...]]:
    """Return the size of the next chunk, its NUMA policy and the nodes to populate it from."""
    most_bytes = max(most_bytes, extent.page_size)
    if extent.policy in ("none", "interleave"):
        nodes = tuple(node for node in _nodes(extent.shares) if node >= 0)
        return min(most_bytes, extent.target_bytes - extent.zeroed_bytes), extent.policy, nodes
    end = 0
    for node, size in extent.shares:
        end += size
        if end > extent.zeroed_bytes:
            return min(most_bytes, end - extent.zeroed_bytes), "bind", (node,)
    return 0, "none", ()


def _renamed(before: PrezeroedExtent, after: PrezeroedExtent) -> PrezeroedExtent:
    before.path.rename(after.path)
    return after


def truncate(extent: PrezeroedExtent, size_bytes: int) -> PrezeroedExtent | None:
    """Truncate one to at most ``size_bytes``, a multiple of its page size; return ``None`` when nothing is left."""
    after = truncated(extent, size_bytes)
    if after is None or not extent.path.exists():  # it was removed by other means
        extent.path.unlink(missing_ok=True)
        return None
    os.truncate(extent.path, after.zeroed_bytes)
    return _renamed(extent, after)


def truncated(extent: PrezeroedExtent, size_bytes: int) -> PrezeroedExtent | None:
    """Return what ``truncate`` leaves of one.

    An interleaved one is removed as a whole: which pages its first part has of each node depends on all of it.
    """
    if size_bytes <= 0 or (extent.policy == "interleave" and size_bytes < extent.zeroed_bytes):
        return None
    zeroed_bytes = min(extent.zeroed_bytes, size_bytes)
    return replace(extent, zeroed_bytes=zeroed_bytes, shares=prefix(extent.shares, size_bytes))


def take(extent: PrezeroedExtent, path: Path, size_bytes: int) -> int:
    """Move a pre-zeroed extent to ``path`` with a size of ``size_bytes``; return its zeroed bytes.

    Pages beyond these, which an interrupted chunk may have left, go back to the pool.

    :raise FileNotFoundError: When it was removed by other means.
    :raise ExtentError: When it cannot be moved.
    """
    zeroed = min(extent.zeroed_bytes, size_bytes)
    os.truncate(extent.path, zeroed)
    extent_files.move_in(extent.path, path, size_bytes)
    return zeroed


def is_exact_fit(extent: PrezeroedExtent, policy: str, shares: Shares, owner: Owner) -> bool:
    """Tell whether a pre-zeroed extent is complete and just as wanted, so that none can fit better."""
    return (extent.owner, extent.policy, extent.shares, extent.is_complete) == (owner, policy, shares, True)


def best_fit(
    extents: Sequence[PrezeroedExtent], policy: str, shares: Shares, owner: Owner
) -> PrezeroedExtent | None:
    """Return the extent that leaves the least to populate, then the one that wastes the least; ``None``: none fits.

    One created for that very backend is preferred to equal ones.
    """
    wanted = sum(size for _, size in shares)

    def cost(extent: PrezeroedExtent) -> tuple[int, bool, int]:
        missing = wanted - min(extent.zeroed_bytes, wanted)
        return missing, extent.owner != owner, abs(extent.target_bytes - wanted)

    return min((extent for extent in extents if _may_become(extent, policy, shares)), key=cost, default=None)


def _may_become(extent: PrezeroedExtent, policy: str, shares: Shares) -> bool:
    """Tell whether every zeroed page is on the node where an extent with these shares would have it."""
    if not extent.zeroed_bytes:
        return False
    if "interleave" in (extent.policy, policy):
        return extent.policy == policy and _nodes(extent.shares) == _nodes(shares)
    common = min(extent.zeroed_bytes, sum(size for _, size in shares))
    return prefix(extent.shares, common) == prefix(shares, common)


def _nodes(shares: Shares) -> list[int]:
    return sorted(node for node, _ in shares)


def keepable_bytes(extent: PrezeroedExtent, excess: Mapping[int, int]) -> int:
    """Return the size to truncate one to so that it holds ``excess`` bytes (by node) less."""
    if extent.policy == "interleave":
        return 0 if any(node in excess for node, _ in extent.shares) else extent.zeroed_bytes
    kept = offset = 0
    for node, size in prefix(extent.shares, extent.zeroed_bytes):
        kept = offset + size
        if node in excess:
            kept = offset + max(0, size - excess[node])
        offset += size
        if kept < offset:
            break
    return kept
