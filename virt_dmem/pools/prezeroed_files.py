# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents made ready ahead: files whose memory is there and zeroed, until a domain that starts takes one.

They lie in ``<mount>/.ready``. The name of each is the record of it, which lasts as long as its memory does and is
changed by renaming, at once whatever happens; numbers in it are pages, in hexadecimal::

    n200_bind_0=100,1=100_UUID_ALIAS    grows to its shares, and is clean as far as it goes

``UUID`` and ``ALIAS`` are of the memory backend that it was made for; another one may take it. All of its memory
came from the kernel, which zeroed it: no file that a guest had ever becomes one of these. What a crash leaves
beyond the clean part is cut off before it is touched again.
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
    "DIRECTORY",
    "Owner",
    "PrezeroedExtent",
    "Shares",
    "begin",
    "best_fit",
    "by_node",
    "clean_more",
    "clear",
    "cut",
    "is_foreseen",
    "listed",
    "longest",
    "next_chunk",
    "prefix",
    "shortened",
    "take",
]

log = logging.getLogger(__name__)

DIRECTORY = ".ready"
_NAME = re.compile(
    r"n(?P<clean>[0-9a-f]+)_(?P<policy>none|bind|preferred|interleave)"
    r"_(?P<shares>-?\d+=[0-9a-f]+(,-?\d+=[0-9a-f]+)*)_(?P<uuid>[0-9a-f-]{36})_(?P<alias>[^/]+)"
)
_LONGEST_NAME = 255

Shares = tuple[tuple[int, int], ...]
"""Node and bytes, in the order in which they follow each other in the file, except where it is interleaved."""


class Owner(NamedTuple):
    """A memory backend, by its domain and its alias there."""

    uuid: str
    alias: str


@dataclass(frozen=True)
class PrezeroedExtent:
    """One file; ``clean_bytes`` of it are there and zero, from its beginning on."""

    directory: Path
    clean_bytes: int
    policy: str
    shares: Shares
    """What it is to have when it is done."""
    owner: Owner
    page_size: int

    @cached_property
    def path(self) -> Path:
        """Where it stands."""
        shares = ",".join(f"{node}={size // self.page_size:x}" for node, size in self.shares)
        clean = self.clean_bytes // self.page_size
        return self.directory / f"n{clean:x}_{self.policy}_{shares}_{self.owner.uuid}_{self.owner.alias}"

    @property
    def goal_bytes(self) -> int:
        """How much is clean when it is done."""
        return sum(size for _, size in self.shares)

    @property
    def is_done(self) -> bool:
        """All of it is there and clean."""
        return self.clean_bytes == self.goal_bytes


def prefix(shares: Shares, size_bytes: int) -> Shares:
    """Return the shares of the first ``size_bytes`` of a file that is not interleaved."""
    found = []
    for node, size in shares:
        if size_bytes > 0:
            found.append((node, min(size, size_bytes)))
        size_bytes -= size
    return tuple(found)


def by_node(some: Iterable[PrezeroedExtent]) -> Counter[int]:
    """Return the memory that ready extents hold, in bytes by node."""
    held: Counter[int] = Counter()
    for extent in some:
        if extent.policy != "interleave":
            held.update(dict(prefix(extent.shares, extent.clean_bytes)))
            continue
        pages, more = divmod(extent.clean_bytes // extent.page_size, len(extent.shares))
        held.update(
            {node: (pages + (at < more)) * extent.page_size for at, (node, _) in enumerate(sorted(extent.shares))}
        )
    return held


def listed(record: PoolRecord) -> list[PrezeroedExtent]:
    """Return what there is in a segment; what a crash left unfinished is cut off, what is no record is removed."""
    directory = Path(record.mount, DIRECTORY)
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        extent = _read(path, record.page_size)
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode) or extent is None or there.st_size < extent.clean_bytes:
            _discard(path)
            continue
        if there.st_size > extent.clean_bytes:
            os.truncate(path, extent.clean_bytes)
        found.append(extent)
    return found


def _discard(path: Path) -> None:
    """Remove what is no record; what cannot be is left, and counted as nobody's by who adds up the files."""
    try:
        path.unlink()
    except OSError as error:
        log.warning("%r cannot be removed from the pre-zeroed memory: %s", str(path), error)


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
        clean_bytes=int(match["clean"], 16) * page_size,
        policy=match["policy"],
        shares=shares,
        owner=Owner(match["uuid"], match["alias"]),
        page_size=page_size,
    )
    return extent if extent.clean_bytes <= extent.goal_bytes else None


def begin(record: PoolRecord, policy: str, shares: Shares, owner: Owner) -> PrezeroedExtent | None:
    """Make the file of a new one, with nothing in it yet; ``None`` where it has too many nodes to be named."""
    extent = PrezeroedExtent(Path(record.mount, DIRECTORY), 0, policy, shares, owner, record.page_size)
    if len(extent.path.name) > _LONGEST_NAME:
        return None
    extent.directory.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(extent.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return extent


def clear(record: PoolRecord) -> None:
    """Give back all that is ready in a segment, where no daemon does it."""
    for extent in listed(record):
        cut(extent, 0)


async def clean_more(
    extent: PrezeroedExtent, most_bytes: int, *, threads: int = 0, helper: Path | None = None
) -> PrezeroedExtent:
    """Make a chunk of at most ``most_bytes`` (or one page) more of an extent clean; cancelled, it is as it was.

    :raise PrefaultFailed: When the pool has not the memory, or it failed.
    """
    offset = extent.clean_bytes
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
    return _renamed(extent, replace(extent, clean_bytes=offset + size))


def next_chunk(extent: PrezeroedExtent, most_bytes: int) -> tuple[int, str, tuple[int, ...]]:
    """Return the size of the next chunk, with the NUMA policy and the nodes to bring it in from."""
    most_bytes = max(most_bytes, extent.page_size)
    if extent.policy in ("none", "interleave"):
        nodes = tuple(node for node in _nodes(extent.shares) if node >= 0)
        return min(most_bytes, extent.goal_bytes - extent.clean_bytes), extent.policy, nodes
    end = 0
    for node, size in extent.shares:
        end += size
        if end > extent.clean_bytes:
            return min(most_bytes, end - extent.clean_bytes), "bind", (node,)
    return 0, "none", ()


def _renamed(before: PrezeroedExtent, after: PrezeroedExtent) -> PrezeroedExtent:
    before.path.rename(after.path)
    return after


def cut(extent: PrezeroedExtent, size_bytes: int) -> PrezeroedExtent | None:
    """Let one have at most its first ``size_bytes``, a multiple of its page size; ``None`` when nothing is left."""
    after = shortened(extent, size_bytes)
    if after is None or not extent.path.exists():  # somebody else emptied the pool
        extent.path.unlink(missing_ok=True)
        return None
    os.truncate(extent.path, after.clean_bytes)
    return _renamed(extent, after)


def shortened(extent: PrezeroedExtent, size_bytes: int) -> PrezeroedExtent | None:
    """Return what ``cut`` leaves of one.

    An interleaved one goes as a whole: what its first part has of each node depends on all of it.
    """
    if size_bytes <= 0 or (extent.policy == "interleave" and size_bytes < extent.clean_bytes):
        return None
    clean_bytes = min(extent.clean_bytes, size_bytes)
    return replace(extent, clean_bytes=clean_bytes, shares=prefix(extent.shares, size_bytes))


def take(extent: PrezeroedExtent, path: Path, size_bytes: int) -> int:
    """Make a ready extent the file at ``path``, of ``size_bytes``; return how much of it is there and clean.

    What lies beyond that is given back to the pool: a chunk that was cut short may have left it.

    :raise FileNotFoundError: When it is not there: somebody else emptied the pool.
    :raise ExtentError: When it cannot be done.
    """
    clean = min(extent.clean_bytes, size_bytes)
    os.truncate(extent.path, clean)
    extent_files.move_in(extent.path, path, size_bytes)
    return clean


def is_foreseen(extent: PrezeroedExtent, policy: str, shares: Shares, owner: Owner) -> bool:
    """Tell whether a ready extent is just what is wanted, so that none can fit better."""
    return (extent.owner, extent.policy, extent.shares, extent.is_done) == (owner, policy, shares, True)


def best_fit(stock: Sequence[PrezeroedExtent], policy: str, shares: Shares, owner: Owner) -> PrezeroedExtent | None:
    """Return the one that leaves the least to be done for such an extent, then that wastes the least.

    One made for that very backend comes before others as good.
    """
    wanted = sum(size for _, size in shares)

    def cost(extent: PrezeroedExtent) -> tuple[int, bool, int]:
        missing = wanted - min(extent.clean_bytes, wanted)
        return missing, extent.owner != owner, abs(extent.goal_bytes - wanted)

    return min((extent for extent in stock if _may_become(extent, policy, shares)), key=cost, default=None)


def _may_become(extent: PrezeroedExtent, policy: str, shares: Shares) -> bool:
    """Tell whether every page that is clean is where an extent with these shares would have it."""
    if not extent.clean_bytes:
        return False
    if "interleave" in (extent.policy, policy):
        return extent.policy == policy and _nodes(extent.shares) == _nodes(shares)
    common = min(extent.clean_bytes, sum(size for _, size in shares))
    return prefix(extent.shares, common) == prefix(shares, common)


def _nodes(shares: Shares) -> list[int]:
    return sorted(node for node, _ in shares)


def longest(extent: PrezeroedExtent, too_much: Mapping[int, int]) -> int:
    """Return how much may stay of one so that so much less of each node is held; at best nothing of it goes."""
    if extent.policy == "interleave":
        return 0 if any(node in too_much for node, _ in extent.shares) else extent.clean_bytes
    stays = offset = 0
    for node, size in prefix(extent.shares, extent.clean_bytes):
        stays = offset + size
        if node in too_much:
            stays = offset + max(0, size - too_much[node])
        offset += size
        if stays < offset:
            break
    return stays
