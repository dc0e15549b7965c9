# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold the free memory of a pool on its nodes, in populated files, until a domain needs the pages.

A mount's ``min_size`` makes the kernel reserve huge pages for it, but counted for the whole host: a process that
binds to a node takes pages there as long as as many others are free elsewhere (``mm/hugetlb.c``,
``dequeue_hugetlb_folio_nodemask``). Faulted pages cannot be taken. So on a host with more than one node each
segment has a populated file for each of its nodes, as large as the free memory of that node.
"""

from __future__ import annotations

import os
from pathlib import Path

from virt_dmem.host import kernel, numa
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.prefault import prefault
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import MIB

__all__ = ["grow", "shrink", "held_bytes", "nodes_to_hold", "DIRECTORY"]

DIRECTORY = ".ballast"
_CHUNK = 256 * MIB
"""Populated at a time. Only the last chunk of a file may lack pages, after the daemon was killed."""


def nodes_to_hold(record: PoolRecord, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
    """Return the nodes on which a segment needs ballast: none where the kernel's reservation is enough."""
    if not backend(record.backend).holds_nodes or len(numa.nodes_with_memory(root=root)) < 2:
        return ()
    return tuple(record.nodes)


def held_bytes(record: PoolRecord, node: int) -> int:
    """Return the bytes of a node that the ballast of a segment holds."""
    try:
        found = _file(record, node).stat()
    except FileNotFoundError:
        return 0
    whole = found.st_blocks * 512 >= found.st_size
    return found.st_size if whole else max(0, found.st_size - _chunk(record)) // record.page_size * record.page_size


def shrink(record: PoolRecord, node: int, keep_bytes: int) -> None:
    """Truncate the ballast on a node to at most ``keep_bytes``, which frees the rest."""
    file = _file(record, node)
    if file.exists() and file.stat().st_size > keep_bytes:
        os.truncate(file, keep_bytes)


async def grow(
    record: PoolRecord, node: int, size_bytes: int, *, threads: int = 0, helper: Path | None = None
) -> bool:
    """Grow the ballast on a node by a chunk, to at most ``size_bytes``; return whether it is smaller than that.

    :raise PrefaultFailed: When the node lacks the memory; the ballast keeps its size then.
    """
    held = held_bytes(record, node)
    if held >= size_bytes:
        return False
    file = _file(record, node)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    step = min(_chunk(record), size_bytes - held)
    os.truncate(file, held)  # drop an interrupted chunk
    os.truncate(file, held + step)
    try:
        async for _ in prefault(
            file,
            offset_bytes=held,
            size_bytes=step,
            page_size=record.page_size,
            policy="bind",
            nodes=(node,),
            threads=threads,
            helper=helper,
        ):
            pass
    except BaseException:
        os.truncate(file, held)
        raise
    return held + step < size_bytes


def _chunk(record: PoolRecord) -> int:
    return max(_CHUNK, record.page_size)


def _file(record: PoolRecord, node: int) -> Path:
    return Path(record.mount) / DIRECTORY / f"node{node}"
