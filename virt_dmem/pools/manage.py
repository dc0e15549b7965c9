# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools from beginning to end: made, mounted again after a boot, given back (resized: ``virt_dmem.pools.resize``).

For root's command line and the boot unit; the daemon only reads (``records``, ``find``, ``capacity``). A pool
that cannot be made whole is not made at all. Each step is in the pool's record before it is done, so that
``destroy`` undoes whatever a kill or a power cut left, and may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from virt_dmem.config.schema import Config
from virt_dmem.errors import (
    DmemError,
    PoolBusy,
    PoolError,
    PoolExists,
    PoolShort,
    PrefaultFailed,
    UsageError,
)
from virt_dmem.host import dirfd, kernel, mounts, processes
from virt_dmem.host.ranges import Range
from virt_dmem.pools import ballast, prezeroed_files
from virt_dmem.pools.backends.base import Backend, Job, Report
from virt_dmem.pools.backends.table import backend as backend_named
from virt_dmem.pools.record import BackendName, NodeShare, PoolRecord
from virt_dmem.pools.registry import NAME, records, segments
from virt_dmem.units import format_size

__all__ = [
    "create",
    "destroy",
    "mount",
]


def create(
    config: Config,
    name: str,
    *,
    sizes: int | Mapping[int, int] | None,
    backend: str = "hugetlbfs",
    page_size: int | None = None,
    hvo: bool = True,
    regions: Mapping[int, Sequence[Range]] | None = None,
    report: Report | None = None,
    root: Path = kernel.ROOT,
) -> PoolRecord:
    """Take memory from the host, and mount it as a pool.

    :param sizes: Bytes by node, or in all, to be spread evenly over the nodes that have memory; ``None`` where the
        backend knows by itself what there is.
    :param page_size: Bytes; ``None`` for the smallest that the backend has.
    :param hvo: Switch HVO on before huge pages are taken.
    :param regions: Of dmemfs: these ranges by node, and no others.
    :raise UsageError: When the name, the page size, a node or a size cannot be.
    :raise PoolExists: When there is such a pool already.
    :raise PoolShort: When the host has not enough memory, and all was given back.
    :raise PoolError: When the kernel refuses, and all was given back.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a pool.",
            hint="Use 1 to 32 letters, digits, '_', '.' and '-', the first a letter or digit.",
        )
    kind = backend_named(backend)
    probe = kind.probe(root=root)
    if not probe.available:
        raise PoolError(f"There can be no {backend} pool: {probe.reason}.", hint="Choose another --backend.")
    page_size = _page_size(kind, page_size, root)
    if regions is not None:
        sizes = {node: sum(item.size for item in ranges) for node, ranges in regions.items()}
    if sizes is None:
        sizes = kind.default_sizes(page_size, records(config), root=root)
    record = PoolRecord(
        name=name,
        backend=cast(BackendName, kind.name),
        page_size=page_size,
        mount=str(config.pools_dir.resolve() / name),
        nodes={node: NodeShare(size) for node, size in shares_of(kind, page_size, sizes, root).items()},
        boot_id=kernel.boot_id(root=root),
        hvo=hvo,
        regions={node: list(ranges) for node, ranges in (regions or {}).items()},
        regions_named=regions is not None,
    )
    for directory in (config.pool_records_dir, config.pools_dir):
        _require_roots(directory)
    with locked(config):
        job = job_of(config, record, report, root)
        if any(other.pool == name for other in job.others) or _path(config, name).exists():
            raise PoolExists(f"There is a pool {name} already.", hint="Choose another name, or destroy that one.")
        if mounts.mount_at(Path(record.mount), root=root):
            raise PoolExists(
                f"Something that is no pool of ours is mounted at {record.mount}.",
                hint="Unmount it, or choose another name.",
            )
        add(config, kind, job)
    return record


def add(config: Config, kind: Backend, job: Job) -> None:
    """Make a new segment, or nothing.

    :raise PoolShort: When the host has not enough memory.
    :raise PoolError: When the kernel refuses.
    """
    kind.check(job)
    job.save()
    try:
        bring_up(kind, job)
    except BaseException as error:  # also Ctrl-C, and an output that broke while reporting
        try:
            take_down(config, kind, dataclasses.replace(job, report=_silent))
        except PoolError as left:
            if isinstance(error, DmemError):
                error.hint = f"{error.hint} {left}"
        raise


def mount(
    config: Config, name: str, *, report: Report | None = None, root: Path = kernel.ROOT
) -> PoolRecord | None:
    """Bring a recorded pool to where it should be: for the boot unit, and after an interruption.

    Segments of an earlier boot get their memory and their mount again; those that are there are left alone.
    One that was never finished, or whose destruction was cut short, is undone. The record of the first is
    returned, ``None`` when none is left.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolShort: When the host has not enough memory; what was got was given back, the record is kept.
    :raise PoolError: When the kernel refuses, likewise.
    """
    brought: list[PoolRecord | None] = []
    failures: list[DmemError] = []
    with locked(config):
        for record in segments(config, name):
            try:
                brought.append(_brought(config, record, report, root))
            except DmemError as failure:  # the others may still come
                failures.append(failure)
    if failures:
        raise failures[0]
    return next(filter(None, brought), None)


def _brought(config: Config, record: PoolRecord, report: Report | None, root: Path) -> PoolRecord | None:
    kind = backend_named(record.backend)
    job = job_of(config, record, report, root)
    if record.state in ("creating", "destroying"):
        take_down(config, kind, job)
        return None
    if record.state == "ready" and kind.mounted(record, root=root):
        return record
    record.state = "mounting"
    job.save()
    try:
        kind.check(job)
        bring_up(kind, job)
    except BaseException:
        with contextlib.suppress(PoolError):
            if kind.mounted(record, root=root):
                kind.unmount(record)
            kind.release(dataclasses.replace(job, report=_silent))
        raise
    return record


def destroy(config: Config, name: str, *, report: Report | None = None, root: Path = kernel.ROOT) -> None:
    """Unmount a pool and give back what it took; a record in any state will do, and it may be repeated.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolBusy: When there are files in it, or processes use it; it is left as it was.
    :raise PoolError: When memory would not go; the record says how much, and ``destroy`` tries again.
    """
    with locked(config):
        there = segments(config, name)
        for record in there:
            refuse_if_used(record, root)
        for record in there:
            take_down(config, backend_named(record.backend), job_of(config, record, report, root))


def bring_up(kind: Backend, job: Job) -> None:
    """Let a segment have what its record wants, from whatever state; one that is to be smaller is empty.

    :raise PoolBusy: When it is to be smaller and is used all the same.
    :raise PoolShort: When the host has not enough memory.
    :raise PoolError: When the kernel refuses.
    """
    record = job.record
    if record.got_bytes > record.wanted_bytes:  # its mount keeps what is too much
        if kind.mounted(record, root=job.root):
            kind.unmount(record)
        kind.release(job, keep_wanted=True)
    kind.acquire(job)
    if not kind.mounted(record, root=job.root):
        job.report(f"Mounting {record.mount}", record.got_bytes, record.wanted_bytes)
        _passable(Path(record.mount))
        kind.mount(job)
    _hold(job)
    record.state = "ready"
    job.save()


def _hold(job: Job) -> None:
    """Hold every page on its node, from the first moment on; later that is the daemon's."""
    record = job.record
    in_all, held_before = record.wanted_bytes, 0
    for node in [] if files_in(record, job.root) else ballast.nodes_to_hold(record, root=job.root):
        wanted = record.nodes[node].wanted_bytes
        more = True
        while more:
            held = held_before + ballast.held_bytes(record, node)
            job.report(f"Holding huge pages of node {node}", held, in_all)
            try:
                more = asyncio.run(ballast.grow(record, node, wanted))
            except PrefaultFailed as failure:
                raise PoolShort(
                    f"Pool {record.name} took {format_size(wanted)} of node {node}; others have some of it now.",
                    hint=f"See which process takes huge pages, then try again. {failure.message}",
                ) from failure
        held_before += wanted


def _passable(directory: Path) -> None:
    """Make a directory that QEMU's user can pass through, whatever the umask; one that exists is left alone."""
    if not directory.exists():
        _passable(directory.parent)
        directory.mkdir()
        directory.chmod(0o711)


def _require_roots(directory: Path) -> None:
    """Refuse to make or mount anything where others could have it be somewhere else.

    :raise PoolError: When somebody but root may change the directory, or one above it.
    """
    try:
        dirfd.require_roots(directory)
    except OSError as error:
        raise PoolError(
            f"Pools cannot be kept in {directory}: {error.strerror}.",
            hint="All directories on the way have to be root's, with nobody else writing to them.",
        ) from error


def take_down(config: Config, kind: Backend, job: Job) -> None:
    """Undo a pool in whatever state it is.

    :raise PoolBusy: When it cannot be unmounted because of its users; its state is then as before.
    :raise PoolError: When memory would not go.
    """
    record = job.record
    before = record.state
    record.state = "destroying"
    job.save()
    try:
        if kind.mounted(record, root=job.root):
            kind.unmount(record)
    except DmemError:
        record.state = before
        job.save()
        refuse_if_used(record, job.root)  # knows who it is
        raise
    with contextlib.suppress(OSError):  # not there, or not ours to remove
        Path(record.mount).rmdir()
    in_all = record.got_bytes
    left = kind.release(job)
    if left:
        raise PoolError(
            f"Pool {record.name} is unmounted, but {format_size(left)} of {format_size(in_all)} would not go"
            " back to the host: a process or a device has pages of it (one pinned page keeps all of them), or"
            " memory for their struct pages is missing.",
            hint=f"End what has them or free memory, then run 'virt-dmem pool destroy {record.name}' again;"
            " 'virt-dmem explain memory-pinned' says what may pin pages.",
        )
    _path(config, record.name).unlink(missing_ok=True)
    _sync(config.pool_records_dir)


def files_in(record: PoolRecord, root: Path = kernel.ROOT) -> list[Path]:
    """Return the files of a segment; none where it is not mounted."""
    if not backend_named(record.backend).mounted(record, root=root):
        return []
    top = Path(record.mount)
    ours = (ballast.DIRECTORY, prezeroed_files.DIRECTORY)
    found = (path for path in sorted(top.rglob("*")) if path.relative_to(top).parts[0] not in ours)
    return [path for path in found if not path.is_dir() or path.is_symlink()]


def refuse_if_used(record: PoolRecord, root: Path) -> None:
    """Raise ``PoolBusy`` when files or processes are in a segment; names both."""
    mounted = backend_named(record.backend).mounted(record, root=root)
    if not mounted:
        return
    files = [path.relative_to(record.mount) for path in files_in(record, root)]
    pids = processes.processes_using(mounted.device, root=root)
    users = [f"{processes.process_name(pid, root=root)} ({pid})" for pid in pids]
    if files or users:
        raise PoolBusy(
            f"Pool {record.name} holds {len(files)} files ({_some(files)}), and is used by"
            f" {len(users)} processes ({_some(users)}).",
            hint="Shut these domains down, or run 'virt-dmem reconcile' for what nobody uses any more.",
        )


def _some(things: list[str] | list[Path]) -> str:
    shown = ", ".join(map(str, things[:5])) or "none"
    return f"{shown}, …" if len(things) > 5 else shown


def _page_size(kind: Backend, wanted: int | None, root: Path) -> int:
    offered = kind.page_sizes(root=root)
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise UsageError(
            f"A {kind.name} pool on this host cannot have pages of {format_size(wanted)}.",
            hint=f"It can have {' or '.join(map(format_size, offered))}.",
        )
    return wanted


def shares_of(
    kind: Backend, page_size: int, sizes: int | Mapping[int, int], root: Path, *, least: int = 1
) -> dict[int, int]:
    """Return the bytes a pool is to have of each node, as asked by node or spread evenly (``Backend.nodes``).

    :raise UsageError: When a size is no whole number of pages, at least ``least``, or a node has no memory.
    """
    with_memory, near = kind.nodes(root=root)
    for size in [sizes] if isinstance(sizes, int) else sizes.values():
        if size < least * page_size or size % page_size:
            below = size // page_size * page_size
            nearest = [format_size(at) for at in (below, below + page_size) if at >= least * page_size]
            raise UsageError(
                f"{size} bytes are not a whole number of pages of {format_size(page_size)}.",
                hint=f"The nearest size is {' or '.join(nearest or [format_size(least * page_size)])}.",
            )
    if isinstance(sizes, int):
        if not near:
            raise PoolShort(f"No node has memory for a {kind.name} pool.", hint=kind.how_to_have_memory(root=root))
        return evenly(sizes, near, page_size)
    if not sizes or not set(sizes) <= set(with_memory):
        raise UsageError(
            f"A {kind.name} pool cannot have memory of node {', '.join(map(str, sorted(sizes)))}.",
            hint=f"Name its size in all, or sizes of nodes among {', '.join(map(str, with_memory))}."
            if kind.has_nodes
            else "Name its size in all: it takes memory from no node in particular.",
        )
    return dict(sorted(sizes.items()))


def evenly(size_bytes: int, nodes: Sequence[int], page_size: int) -> dict[int, int]:
    """Return whole pages of each node, as even as can be; a node that would have none is left out."""
    pages, more = divmod(size_bytes // page_size, len(nodes))
    even = {node: (pages + (at < more)) * page_size for at, node in enumerate(nodes)}
    return {node: size for node, size in even.items() if size}


def job_of(config: Config, record: PoolRecord, report: Report | None, root: Path) -> Job:
    others = tuple(other for other in records(config) if other.name != record.name)
    now = kernel.boot_id(root=root)
    if record.boot_id != now:  # all that was taken ended with that boot
        record.boot_id, record.step, record.switched_hvo = now, None, False
        record.saved_bytes, record.measured = 0, True
        for share in record.nodes.values():
            share.got_bytes = 0
    return Job(record, others, lambda: _write(config, record), report or _silent, root)


def _silent(_doing: str, _done_bytes: int, _total_bytes: int) -> None:
    """Report nothing."""


def _path(config: Config, name: str) -> Path:
    return config.pool_records_dir / f"{name}.json"


def _write(config: Config, record: PoolRecord) -> None:
    """Replace the record; after a power cut there is the old one or the new one."""
    path = _path(config, record.name)
    fresh = path.with_name(f".{record.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor
        file.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        file.flush()
        os.fsync(fd)
    fresh.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(config: Config) -> Iterator[None]:
    """Let one command at a time change pools; the lock ends with the process, however it ends."""
    directory = config.pool_records_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PoolError(
            f"Pools cannot be changed: {directory}: {os.strerror(error.errno or 0)}.", hint="Run this as root."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
