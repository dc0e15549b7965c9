# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool`` and ``savings``. Pools are changed here, by root, in this process; virt-dmemd is told."""

from __future__ import annotations

import argparse
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from virt_dmem.cli import columns
from virt_dmem.cli.output import Output
from virt_dmem.cli.progress import progress
from virt_dmem.config.schema import Config, load_config
from virt_dmem.errors import DaemonUnreachable, ExitStatus, PermissionRefused, UsageError
from virt_dmem.host import kernel
from virt_dmem.host.ranges import Range, parse_range
from virt_dmem.ipc.client import Client
from virt_dmem.pools import manage, prezeroed_files, registry
from virt_dmem.pools import resize as resizing
from virt_dmem.pools import savings as saving
from virt_dmem.pools.backends.dmemfs import regions_by_node
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["create", "destroy", "list_pools", "mount", "resize", "savings", "show"]


def create(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Take memory from the host and mount it as a pool."""
    config = load_config(args.config)
    sizes = _sizes(args, may_be_missing=True)
    _require_root("Making a pool")
    regions = _regions(args, given=sizes is not None)
    with progress(out) as report:
        record = manage.create(
            config,
            args.name,
            sizes=sizes,
            backend=args.backend,
            page_size=args.page_size,
            hvo=not args.no_hvo,
            regions=regions,
            report=report,
        )
    pages = f"pages of {format_size(record.page_size)}"
    out.text(f"Pool {record.name}: {format_size(record.got_bytes)} in {pages} at {record.mount}")
    out.result(pool=_row_of([record]))
    _refresh(config)
    return ExitStatus.DONE


def _regions(args: argparse.Namespace, *, given: bool) -> dict[int, list[Range]] | None:
    """Return the ranges that ``--region`` names, by node; ``None`` for those that are found."""
    if args.region and args.backend != "dmemfs":
        raise UsageError(
            f"A {args.backend} pool is not made of regions.", hint="--region goes with --backend dmemfs."
        )
    if args.region in ([], ["auto"]):
        return None
    if given:
        raise UsageError("Regions have a size already.", hint="Leave --size and --node out.")
    return regions_by_node([parse_range(text) for text in args.region])


def _sizes(args: argparse.Namespace, *, may_be_missing: bool = False) -> int | dict[int, int] | None:
    """Return what ``--size`` and ``--node`` ask for: bytes in all, or bytes by node; ``None`` for nothing."""
    by_node: dict[int, int] = dict(args.node)
    if len(by_node) < len(args.node):
        raise UsageError("A node is named twice.", hint="Give --node once for each node.")
    if args.size is None and not by_node and may_be_missing:
        return None
    if args.size is None and not by_node:
        raise UsageError("How large the pool is to be is missing.", hint="Give --size SIZE, or --node N=SIZE.")
    if args.size is not None and by_node and args.size != sum(by_node.values()):
        raise UsageError(
            f"--size is {format_size(args.size)}, and the nodes make {format_size(sum(by_node.values()))}.",
            hint="Leave --size out, or make the two agree.",
        )
    return by_node or int(args.size)


def destroy(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Unmount a pool and give its memory back.

    virt-dmemd is asked first: it refuses while domains hold memory, and gives nothing of the pool any more.
    Where nobody listens nobody can give memory either, and ``pools.destroy`` still refuses a pool with a file
    in it. One that listens and does not answer may be giving memory: then nothing is done.
    """
    config = load_config(args.config)
    _require_root("Destroying a pool")
    registry.find(config, args.name)
    _Daemon(config).retire(args.name)
    try:
        with _telling_of_lost_pages(out), progress(out) as report:
            manage.destroy(config, args.name, report=report)
    finally:
        _refresh(config)
    out.text(f"Pool {args.name} is gone.")
    out.result(pool=args.name)
    return ExitStatus.DONE


def resize(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Make a pool larger or smaller; what domains hold is never touched."""
    config = load_config(args.config)
    sizes = _sizes(args)
    assert sizes is not None  # noqa: S101 -- it may not be missing
    _require_root("Resizing a pool")
    try:
        with _telling_of_lost_pages(out), progress(out) as report:
            changes = resizing.resize(
                config, args.name, sizes=sizes, daemon=_Daemon(config), report=report, dry_run=args.dry_run
            )
    finally:
        _refresh(config)
    for change in changes:
        out.text(f"{'Would ' if args.dry_run else ''}{change}")
    row = _row_of(registry.segments(config, args.name))
    if not changes:
        out.text(f"Pool {args.name} has this size already.")
    elif not args.dry_run:
        out.text(f"Pool {args.name} has {format_size(row['capacity_bytes'])}.")
    out.result(pool=row, changes=[asdict(change) for change in changes])
    return ExitStatus.DONE


class _Daemon:
    """virt-dmemd, if it listens. One that listens and does not answer may be giving memory: that is an error."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def retire(self, name: str) -> None:
        """Let nothing more be given from a pool or segment; refuses while somebody holds memory of it."""
        if client := self._client():
            with client:
                client.call("RetirePool", name=name)

    def reserved(self, pool: str) -> int:
        """Let the records be read again; return the bytes that are then reserved."""
        client = self._client()
        if client is None:
            for record in registry.segments(self._config, pool):  # nobody else will
                prezeroed_files.clear(record)
            return 0
        with client:
            client.call("RefreshPools")
            return sum(row["reserved_bytes"] for row in client.call("ListPools")["pools"] if row["name"] == pool)

    def _client(self) -> Client | None:
        with suppress(DaemonUnreachable):
            return Client(self._config.socket_path)
        return None


def mount(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Bring a recorded pool to where it should be, and tell virt-dmemd if it runs."""
    config = load_config(args.config)
    _require_root("Mounting a pool")
    with progress(out) as report:
        record = manage.mount(config, args.name, report=report)
    if record is None:
        out.text(f"Pool {args.name} was never finished, or half given back: what was left of it is gone.")
    else:
        row = _row_of(registry.segments(config, args.name))
        out.text(f"Pool {args.name}: {format_size(row['capacity_bytes'])} at {record.mount}")
    out.result(pool=record and row)
    _refresh(config)
    return ExitStatus.DONE


def list_pools(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the pools; from their records when virt-dmemd does not answer, and then not what is reserved."""
    config = load_config(args.config)
    shown = columns.choose(columns.POOLS, args.output, "NAME,BACKEND,PAGES,CAPACITY,RESERVED,FREE,STATE")
    rows = _rows(config, out)
    out.table(shown, rows)
    out.result(pools=rows)
    return ExitStatus.DONE


def show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show one pool, node by node."""
    config = load_config(args.config)
    row = next((row for row in _rows(config, out) if row["name"] == args.name), None)
    if row is None:
        row = _row_of(registry.segments(config, args.name))
    ready = ("READY", "TARGET", "LIMIT", "READY-FOR")
    shown = ("NAME", "BACKEND", "PAGES", *ready, "PINNED", "STATE", "MOUNT")
    out.table([columns.POOLS[name] for name in shown], [row])
    out.text("")
    out.table(list(columns.NODES.values()), row["nodes"])
    out.result(pool=row)
    return ExitStatus.DONE


def savings(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show what each pool saves, and all of them."""
    config = load_config(args.config)
    _require_readable(config)
    rows = [asdict(item) | {"how": "measured" if item.measured else "estimated"} for item in saving.savings(config)]
    out.table(columns.choose(columns.SAVINGS, args.output, "POOL,SIZE,PAGES,GROSS,LEFT,NET,HOW"), rows)
    out.result(pools=rows)
    return ExitStatus.DONE


def _rows(config: Config, out: Output) -> list[dict[str, Any]]:
    try:
        with Client(config.socket_path) as daemon:
            rows: list[dict[str, Any]] = daemon.call("ListPools")["pools"]
    except DaemonUnreachable as error:
        _require_readable(config)
        out.note(f"{error.message} What is reserved is not shown.")
        by_pool = itertools.groupby(registry.records(config), lambda record: record.pool)
        rows = [_row_of(list(segments)) for _, segments in by_pool]
    return rows


def _row_of(segments: list[PoolRecord]) -> dict[str, Any]:
    """Return what the records and mounts of a pool tell, in the form of ``PoolView``; reservations unknown."""
    unknown = {"reserved_bytes": None, "free_bytes": None}
    first = segments[0]
    capacity: Counter[int] = Counter()
    for record in segments:
        capacity.update(registry.capacity(record))
    return {
        "name": first.pool,
        "backend": first.backend,
        "page_size": first.page_size,
        "mount": first.mount,
        "state": next((record.state for record in segments if record.state != "ready"), "ready"),
        "capacity_bytes": capacity.total(),
        **unknown,
        "ready_bytes": None,
        "ready_goal_bytes": None,
        "ready_most_bytes": None,
        "ready_policy": None,
        "pinned_bytes": None,
        "nodes": [{"node": node, "capacity_bytes": size, **unknown} for node, size in sorted(capacity.items())],
    }


@contextmanager
def _telling_of_lost_pages(out: Output) -> Iterator[None]:
    """Say so when the kernel loses memory while it frees huge pages: some kernels do, with HVO."""
    met_before = kernel.bad_pages_met()
    yield
    if not met_before and kernel.bad_pages_met():
        out.note(
            "The kernel met pages in a bad state meanwhile, and does not use them again: a fault of some kernels in"
            " freeing huge pages with HVO. Look for 'Bad page state' in dmesg; a reboot brings the memory back."
        )


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise PermissionRefused(f"{what} needs root.", hint="Run the command with sudo.")


def _require_readable(config: Config) -> None:
    """Raise ``PermissionError`` where the records are hidden from us: an empty list would be a lie."""
    with suppress(FileNotFoundError):
        next(config.pool_records_dir.iterdir(), None)


def _refresh(config: Config) -> None:
    """Tell virt-dmemd that the records changed; one that does not run reads them when it starts."""
    with suppress(DaemonUnreachable), Client(config.socket_path) as daemon:
        daemon.call("RefreshPools")
