# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool resize``: done by root in this process, step by step in agreement with virt-dmemd."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_dry_run, add_pool, add_sizes, sizes
from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.confirm import add_yes, confirm
from virt_dmem.errors import ExitStatus, UsageError
from virt_dmem.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any

    from msgspec import UnsetType

    from virt_dmem.cli.json_schema import Pool, says
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config
    from virt_dmem.pools import resize as resizing

__all__ = ["COMMANDS"]

_ABOUT = """\
Memory that domains hold is never touched. A command that was interrupted is
finished by repeating it, and undone by asking for the former size. Requires
root.

A pool of huge pages or on dmemfs consists of segments, each a mount of its own:
the first is made by 'pool create', and each growth adds one (NAME+1, NAME+2 and
so on). The memory of one guest NUMA cell, or of one memory device, lies within
one segment. The kernel cannot change the size of such a mount, so a segment
shrinks, or is removed, only while no domain holds memory in it: a pool of one
segment does not shrink at all while any domain holds memory of it, however
little. 'pool show' lists the segments and what is reserved in each; a pool that
is to shrink later is best created small and grown. A tmpfs pool is one mount
that shrinks down to what is reserved.

On a terminal it asks before it gives memory back. Some kernels lose huge pages
when they free them ('virt-dmem check', line hvo): there shrinking is refused
without --force."""


_DONE = {
    "add": "Added",
    "remove": "Removed",
    "grow": "Grew",
    "shrink": "Shrank",
    "give": "Gave",
    "finish": "Finished",
    "undo": "Undid",
}
"""How a change is said that was made (``pools.resize.SegmentChange``)."""


class SegmentChange:
    """The change of one segment of a pool that is resized."""

    segment: Annotated[str, says("name of the segment")]
    before: Annotated[dict[str, int], says("bytes by node; empty: it is new")]
    after: Annotated[dict[str, int], says("bytes by node; empty: it is removed")]
    interrupted: (
        Annotated[dict[str, int], says("bytes by node that an earlier, interrupted change was to lead to")]
        | UnsetType
    )


class PoolResizeAnswer:
    """`pool resize`."""

    pool: Annotated[Pool, says("the pool after the change")]
    changes: Annotated[list[SegmentChange], says("what was done, or would be (--dry-run)")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_pool(parser)
    add_sizes(parser, "new total size; the difference is spread over the nodes")
    add_dry_run(parser)
    add_yes(parser)
    parser.add_argument(
        "--force", action="store_true", help="shrink also on a kernel that loses the memory until the next boot"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Grow or shrink a pool; memory that domains hold is never touched."""
    from virt_dmem.cli.pool_changes import PoolDaemon, refresh_pools, reporting_lost_pages
    from virt_dmem.cli.pool_rows import row_of
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.cli.terminal.progress import progress
    from virt_dmem.config.schema import load_config
    from virt_dmem.pools import registry
    from virt_dmem.pools.resize import resize

    config = load_config(args.config)
    size = sizes(args)
    if size is None:
        raise UsageError("The size of the pool is missing.", hint="Give --size SIZE, or --node N=SIZE.")
    require_root("Resizing a pool")
    _require_agreed(args, out, config, size)
    with PoolDaemon(config) as daemon:
        try:
            with reporting_lost_pages(out), progress(out) as report:
                changes = resize(config, args.name, sizes=size, daemon=daemon, report=report, dry_run=args.dry_run)
        finally:
            refresh_pools(config, args.name)
    for change in changes:
        verb, _, rest = str(change).partition(" ")
        out.text(f"Would {verb} {rest}." if args.dry_run else f"{_DONE[verb]} {rest}.")
    row = row_of(registry.segments(config, args.name))
    if not changes:
        out.text(f"Pool {args.name} already has this size.")
    elif not args.dry_run:
        out.text(f"Pool {args.name} has {format_size(row['capacity_bytes'])}.")
    out.result(pool=row, changes=[_change(change) for change in changes])
    return ExitStatus.DONE


def _require_agreed(args: argparse.Namespace, out: Output, config: Config, size: int | dict[int, int]) -> None:
    """Ask, on a terminal, before a pool gives memory back; refuse it where the kernel would lose that.

    :raise PoolError: When it would be lost.
    :raise Cancelled: When the answer is no.
    """
    from virt_dmem.cli.pool_changes import PoolDaemon, require_nothing_lost
    from virt_dmem.pools import registry
    from virt_dmem.pools.backends.table import backend
    from virt_dmem.pools.resize import resize

    with PoolDaemon(config) as daemon:  # which a dry run does not ask
        changes = resize(config, args.name, sizes=size, daemon=daemon, dry_run=True)
    records = {record.name: record for record in registry.segments(config, args.name)}
    less = []
    for change in changes:
        if record := records.get(change.segment):
            fewer = sum(change.before.values()) - sum(change.after.values())
            less.append((record, min(fewer, backend(record.backend).given_back(record))))
    require_nothing_lost(out, args.name, less, forced=args.force)
    if not args.dry_run and (freed := sum(size for _, size in less if size > 0)):
        confirm(args, f"Shrink pool {args.name} and give {out.size(freed)} back to the host?")


def _change(change: resizing.SegmentChange) -> dict[str, Any]:
    interrupted = {"interrupted": change.interrupted} if change.interrupted else {}
    return {"segment": change.segment, "before": change.before, "after": change.after, **interrupted}


COMMANDS = (
    Command(
        "pool resize",
        "grow or shrink a pool while domains run",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="PoolResizeAnswer",
    ),
)
