# SPDX-License-Identifier: GPL-2.0-or-later
"""Create pools, mount them again after a boot, destroy them (resize: ``virt_dmem.pools.resize``).

For root's command line and the boot unit; the daemon only reads (``pools.registry``). A pool that cannot be created
whole is not created at all. Each step is in the pool's record before it is done, so that ``destroy`` undoes
whatever a kill or a power cut left, and may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from virt_dmem.native.programs import HELPER
from virt_dmem.os_errors import explained
from virt_dmem.pool_name import POOL_NAME, POOL_NAME_HINT
from virt_dmem.pools import ballast, prezeroed_files, record_files
from virt_dmem.pools.backends import table
from virt_dmem.pools.backends.base import Backend, Job, ProgressCallback
from virt_dmem.pools.backends.host_options import exact_size
from virt_dmem.pools.lock import locked
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.registry import records, segments
from virt_dmem.text import counted
from virt_dmem.units import format_size

__all__ = ["create", "mount", "destroy"]


def create(
    config: Config,
    name: str,
    *,
    sizes: int | Mapping[int, int] | None,
    backend: str = table.DEFAULT,
    page_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    report: ProgressCallback | None = None,
    root: Path = kernel.ROOT,
) -> PoolRecord:
    """Take memory from the host, and mount it as a pool.

    :param sizes: Bytes by node, or in all, to be spread evenly over the nodes that have memory; ``None`` where the
        backend determines them.
    :param page_size: Bytes; ``None`` for the backend's default.
    :param settings: Further fields of the record, as ``table.settings`` returned them.
    :raise UsageError: When the name, the page size, a node or a size is not valid.
    :raise PoolExists: When there is such a pool already.
    :raise PoolShort: When the host has not enough memory, and all was given back.
    :raise PoolError: When the kernel rejects it, and all was given back.
    """
    if not POOL_NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a pool.", hint=POOL_NAME_HINT)
    kind = table.backend(backend)
    probe = kind.probe(root=root)
    if not probe.available:
        raise PoolError(
            f"A {backend} pool cannot be created here: {probe.reason}.", hint="Choose another --backend."
        )
    page_size = _page_size(kind, page_size, root)
    settings = settings or {}
    least = int(sizes is not None)
    if sizes is None:
        sizes = kind.default_sizes(page_size, settings, records(config), root=root)
    record: PoolRecord = kind.record(
        name=name,
        backend=kind.name,
        page_size=page_size,
        mount=str(config.pools_dir.resolve() / name),
        nodes={
            node: NodeShare(size) for node, size in shares_of(kind, page_size, sizes, root, least=least).items()
        },
        boot_id=kernel.boot_id(root=root),
        **settings,
    )
    for directory in (config.pool_records_dir, config.pools_dir):
        _require_roots(directory)
    with locked(config):
        job = job_of(config, record, report, root)
        if any(other.pool == name for other in job.others) or record_files.path_of(config, name).exists():
            raise PoolExists(f"Pool {name} exists already.", hint="Choose another name, or destroy that one.")
        if mounts.mount_at(Path(record.mount), root=root):
            raise PoolExists(
                f"Something that is not a pool is mounted at {record.mount}.",
                hint="Unmount it, or choose another name.",
            )
        add(config, kind, job)
    return record


def add(config: Config, kind: Backend[Any], job: Job[Any]) -> None:
    """Create a new segment, or leave nothing behind.

    :raise PoolShort: When the host has not enough memory.
    :raise PoolError: When the kernel rejects it.
    """
    kind.check(job)
    job.save()
    try:
        provide(kind, job)
    except BaseException as error:  # also Ctrl-C, and an output that broke while reporting
        try:
            take_down(config, kind, dataclasses.replace(job, report=_silent))
        except PoolError as left:
            if isinstance(error, DmemError):
                again = f"Then run 'virt-dmem pool destroy {job.record.pool}'."
                error.hint = f"{error.hint} {left}{'' if 'pool destroy' in left.hint else f' {again}'}"
        raise


def mount(
    config: Config, name: str, *, report: ProgressCallback | None = None, root: Path = kernel.ROOT
) -> PoolRecord | None:
    """Provide a recorded pool again: for the boot unit, and after an interruption.

    Segments of an earlier boot get their memory and their mount again, but for those that an elastic pool took for
    domains; of those that are mounted only what the host has lost of them. One that was never finished, or whose
    destruction was interrupted, is undone; an interrupted
    change in place is finished or undone. Returns the record of the first segment, ``None`` when none is left.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolShort: When the host has not enough memory; what was taken is given back, the record is kept.
    :raise PoolError: When the kernel rejects it, likewise.
    """
    mounted: list[PoolRecord | None] = []
    failures: list[DmemError] = []
    with locked(config):
        for record in segments(config, name):
            try:
                mounted.append(settle(config, record, report, root))
            except DmemError as failure:  # the others may still be mounted
                failures.append(failure)
    if failures:
        raise failures[0]
    return next(filter(None, mounted), None)


def settle(config: Config, record: PoolRecord, report: ProgressCallback | None, root: Path) -> PoolRecord | None:
    """Provide a segment as recorded; return its record, or ``None`` when it was to go, or never came to be.

    :raise DmemError: As ``mount``.
    """
    kind = table.backend(record.backend)
    of_this_boot = record.boot_id == kernel.boot_id(root=root)
    job = job_of(config, record, report, root)
    over = kind.on_demand(record) and not (of_this_boot and kind.mounted(record, root=root))
    if record.state in ("creating", "destroying") or over:
        take_down(config, kind, job)
        return None
    interrupted = conclude_resize(kind, record, root)
    if record.state == "ready" and kind.mounted(record, root=root):
        if interrupted:
            job.save()
        kind.restore(job)
        return record
    record.state = "mounting"
    job.save()
    try:
        kind.check(job)
        provide(kind, job)
    except BaseException:
        with contextlib.suppress(PoolError):
            if kind.mounted(record, root=root):
                kind.unmount(record)
            kind.release(dataclasses.replace(job, report=_silent))
        raise
    return record


def conclude_resize(kind: Backend[Any], record: PoolRecord, root: Path) -> dict[int, int]:
    """Take an interrupted change in place as done if the mount has its size, else as not begun.

    :return: The bytes by node that it was to lead to; empty: there was none. The record is not saved.
    """
    interrupted, record.resizing = record.resizing, {}
    if interrupted and kind.mounted_bytes(record, root=root) == sum(interrupted.values()):
        record.nodes = {node: NodeShare(size, size) for node, size in interrupted.items()}
    return interrupted


def destroy(config: Config, name: str, *, report: ProgressCallback | None = None, root: Path = kernel.ROOT) -> None:
    """Unmount a pool and give back its memory, whatever state its record is in; may be repeated.

    :raise PoolNotFound: When there is no such pool.
    :raise PoolBusy: When there are files in it, or processes use it; it is left as it was.
    :raise PoolError: When memory could not be given back; the record says how much; repeat ``destroy``.
    """
    with locked(config):
        there = segments(config, name)
        for record in there:
            refuse_if_used(record, root)
        for record in there:
            take_down(config, table.backend(record.backend), job_of(config, record, report, root))


def provide(kind: Backend[Any], job: Job[Any]) -> None:
    """Give a segment the size that its record wants, from whatever state; one that shrinks has to be empty.

    :raise PoolBusy: When it shrinks and is still in use.
    :raise PoolShort: When the host has not enough memory.
    :raise PoolError: When the kernel rejects it.
    """
    record = job.record
    if record.got_bytes > record.wanted_bytes:  # its mount reserves what it has to give back
        _unmount(kind, job)
        kind.release(job, keep_wanted=True)
    kind.acquire(job)
    if not kind.mounted(record, root=job.root):
        job.report(f"Mounting {record.mount}", record.got_bytes, record.wanted_bytes)
        _passable(Path(record.mount))
        kind.mount(job)
    _hold(kind, job)
    record.state = "ready"
    job.save()


def _unmount(kind: Backend[Any], job: Job[Any]) -> None:
    """Unmount a segment if it is mounted; what the host has taken of it then counts as gone.

    :raise PoolBusy: When it is in use, and nothing was changed.
    """
    if kind.mounted(job.record, root=job.root):
        kind.keep(job)
        gone = kind.gone(job)
        kind.unmount(job.record)
        if gone:
            job.record.forget(gone)
            job.save()


def _hold(kind: Backend[Any], job: Job[Any]) -> None:
    """Hold every page on its node from the start; later the daemon does."""
    record = job.record
    in_all, held_before = record.wanted_bytes, 0
    by_itself = kind.on_demand(record) or files_in(record, job.root)  # its domain is about to populate it
    for node in [] if by_itself else ballast.nodes_to_hold(record, root=job.root):
        wanted = record.nodes[node].wanted_bytes
        more = True
        while more:
            held = held_before + ballast.held_bytes(record, node)
            job.report(f"Holding huge pages of node {node}", held, in_all)
            try:
                more = asyncio.run(ballast.grow(record, node, wanted))
            except PrefaultFailed as failure:
                raise PoolShort(
                    f"Pool {record.name} allocated {format_size(wanted)} of node {node}; others use"
                    " some of it now.",
                    hint=f"Find out which process uses huge pages, then try again. {failure.message}",
                ) from failure
        held_before += wanted


def _passable(directory: Path) -> None:
    """Create a directory that QEMU's user can pass through, whatever the umask; an existing one is left alone."""
    if not directory.exists():
        _passable(directory.parent)
        directory.mkdir()
        directory.chmod(0o711)


def _require_roots(directory: Path) -> None:
    """Reject a directory in which others than root could redirect what is created or mounted.

    :raise PoolError: When others may change the directory, or one above it.
    """
    try:
        dirfd.require_roots(directory)
    except OSError as error:
        hint = "All directories of the path have to belong to root, and be writable by root only."
        raise explained(
            error, directory, kind=PoolError, doing=f"Pools cannot be kept in {directory}", otherwise=hint
        ) from error


def take_down(config: Config, kind: Backend[Any], job: Job[Any]) -> None:
    """Undo a segment, whatever state it is in.

    :raise PoolBusy: When it cannot be unmounted because it is in use; its state is then as before.
    :raise PoolError: When memory could not be given back.
    """
    record = job.record
    before = record.state
    record.state = "destroying"
    job.save()
    try:
        _unmount(kind, job)
    except DmemError:
        record.state = before
        job.save()
        refuse_if_used(record, job.root)  # names the users
        raise
    with contextlib.suppress(OSError):  # missing, or somebody else's by now
        Path(record.mount).rmdir()
    in_all = record.got_bytes
    left = kind.release(job)
    if left:
        raise PoolError(
            f"Pool {record.name} is unmounted, but {format_size(left)} of {format_size(in_all)} could not be given"
            " back to the host: a process or a device uses pages of it (one pinned page keeps all of them), or"
            " memory for their struct pages is missing.",
            hint=f"Stop what uses them or free memory, then run 'virt-dmem pool destroy {record.name}' again;"
            " 'virt-dmem explain memory-pinned' says what may pin pages.",
        )
    record_files.remove(config, record.name)


def files_in(record: PoolRecord, root: Path = kernel.ROOT) -> list[Path]:
    """Return the files of a segment; none where it is not mounted."""
    if not table.backend(record.backend).mounted(record, root=root):
        return []
    top = Path(record.mount)
    ours = (ballast.DIRECTORY, prezeroed_files.DIRECTORY)
    found = (path for path in sorted(top.rglob("*")) if path.relative_to(top).parts[0] not in ours)
    return [path for path in found if not path.is_dir() or path.is_symlink()]


def refuse_if_used(record: PoolRecord, root: Path = kernel.ROOT, *, but_helpers: bool = False) -> None:
    """Raise ``PoolBusy``, naming both, when a segment has files, or processes use it.

    :param but_helpers: Leave out the helpers that pre-zero: virt-dmemd ends them when it is asked to.
    """
    mounted = table.backend(record.backend).mounted(record, root=root)
    if not mounted:
        return
    files = [path.relative_to(record.mount) for path in files_in(record, root)]
    pids = processes.processes_using(mounted.device, root=root)
    names = {pid: processes.process_name(pid, root=root) for pid in pids}
    users = [f"{name} ({pid})" for pid, name in names.items() if not (but_helpers and name == _HELPER_NAME)]
    holds = [f"contains {counted(len(files), 'file')} ({_some(files)})"] if files else []
    if users:
        holds.append(f"is used by {counted(len(users), 'process', 'processes')} ({_some(users)})")
    if holds:
        raise PoolBusy(
            f"Pool {record.name} {', and '.join(holds)}.",
            hint="Shut down the domains that use it, or run 'virt-dmem reconcile' to remove files that are not"
            " used any more.",
        )


_HELPER_NAME = HELPER.name[:15]
"""As the kernel cuts it."""


def _some(things: list[str] | list[Path]) -> str:
    shown = ", ".join(map(str, things[:5]))
    return f"{shown}, …" if len(things) > 5 else shown


def _page_size(kind: Backend[Any], wanted: int | None, root: Path) -> int:
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
    kind: Backend[Any], page_size: int, sizes: int | Mapping[int, int], root: Path, *, least: int = 1
) -> dict[int, int]:
    """Return a pool's bytes of each node, as asked by node or spread evenly (``Backend.nodes``).

    :raise UsageError: When a size is no whole number of pages, or less than ``least``, or a node has no memory.
    """
    with_memory, near = kind.nodes(root=root)
    for size in [sizes] if isinstance(sizes, int) else sizes.values():
        if size < least * page_size or size % page_size:
            below = size // page_size * page_size
            nearest = [exact_size(at) for at in (below, below + page_size) if at >= least * page_size]
            raise UsageError(
                f"{size} bytes are not a whole number of pages of {format_size(page_size)}.",
                hint=f"The nearest size is {' or '.join(nearest or [exact_size(least * page_size)])}.",
            )
    if isinstance(sizes, int):
        if not near:
            raise PoolShort(f"No node has memory for a {kind.name} pool.", hint=kind.how_to_have_memory(root=root))
        return evenly(sizes, near, page_size)
    if not sizes or not set(sizes) <= set(with_memory):
        raise UsageError(
            f"A {kind.name} pool cannot have memory of node {', '.join(map(str, sorted(sizes)))}.",
            hint=f"Give its total size, or sizes of nodes among {', '.join(map(str, with_memory))}."
            if kind.has_nodes
            else "Give its total size: its memory is of no particular node.",
        )
    return dict(sorted(sizes.items()))


def evenly(size_bytes: int, nodes: Sequence[int], page_size: int) -> dict[int, int]:
    """Return whole pages of each node, spread evenly; a node that would have none is left out."""
    pages, more = divmod(size_bytes // page_size, len(nodes))
    even = {node: (pages + (at < more)) * page_size for at, node in enumerate(nodes)}
    return {node: size for node, size in even.items() if size}


def job_of(config: Config, record: PoolRecord, report: ProgressCallback | None, root: Path) -> Job[Any]:
    """Return the job of changing a segment; what its record has of an earlier boot is forgotten."""
    others = tuple(other for other in records(config) if other.name != record.name)
    now = kernel.boot_id(root=root)
    if record.boot_id != now:
        record.forget_boot(now)
    return Job(record, others, lambda: record_files.write(config, record), report or _silent, root)


def _silent(_operation: str, _done_bytes: int, _total_bytes: int) -> None:
    """Report nothing."""
