# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool create``: allocated by root in this process; virt-dmemd is told afterwards."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool, add_sizes, sizes
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus
from virt_dmem.units import format_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from virt_dmem.cli.output import Output
    from virt_dmem.pools.record import PoolRecord

__all__ = ["COMMANDS"]

_ABOUT = """\
The pool is created completely or not at all. Without --node its size is spread
evenly over the nodes that have memory; with --node, --size may be omitted. Huge
pages are easiest to allocate soon after boot. Requires root.

An elastic pool (--elastic --max SIZE) has no fixed size: it takes huge pages
when a domain starts, and gives them back some time after it.

A dmemfs pool consists of memory that was reserved at boot ('virt-dmem
plan-host'), found on the kernel's command line and in its memory map, or named
by --region. Without a size it takes all reserved memory that belongs to no pool
yet; if the command line has a dmem= parameter, as the original dmemfs reads it,
it takes what that specifies."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, and those of the backends."""
    from virt_dmem.pools.backends import table

    add_pool(parser)
    add_sizes(parser, "total size, spread evenly over the host's nodes")
    parser.add_argument(
        "--page-size", type=parse_size, metavar="SIZE", help="one that the host has, such as 1G; default: 2M"
    )
    parser.add_argument(
        "--on-boot",
        action="store_true",
        help="have systemd restore it at each boot (enables virt-dmem-pool@NAME.service)",
    )
    table.add_options(parser)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Allocate memory from the host and mount it as a pool."""
    from virt_dmem.cli.pool_changes import refresh_pools
    from virt_dmem.cli.pool_rows import row_of
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.cli.terminal.progress import progress
    from virt_dmem.config.schema import load_config
    from virt_dmem.host import boot_units
    from virt_dmem.pools import manage
    from virt_dmem.pools.backends import table

    config = load_config(args.config)
    size = sizes(args)
    require_root("Creating a pool")
    settings = table.settings(args, sized=size is not None)
    with progress(out) as report:
        record = manage.create(
            config,
            args.name,
            sizes=size,
            backend=args.backend,
            page_size=args.page_size,
            settings=settings,
            report=report,
        )
    pages = f"pages of {format_size(record.page_size)}"
    if note := table.backend(record.backend).created_otherwise(record):
        out.note(note)
    out.text(f"Pool {record.name}: {format_size(record.got_bytes)} in {pages} at {record.mount}")
    row = row_of([record])
    if row["elastic"]:
        _describe_elastic(out, record, row["elastic"])
    refresh_pools(config, args.name)
    if args.on_boot:
        boot_units.enable(args.name)
        out.note(f"{boot_units.unit_of(args.name)} is enabled: it restores the pool at each boot.")
    out.result(pool=row | {"on_boot": boot_units.is_enabled(args.name)})
    return ExitStatus.DONE


def _describe_elastic(out: Output, record: PoolRecord, elastic: Mapping[str, Any]) -> None:
    """Print what an elastic pool may have, and what may keep it from giving memory back."""
    from virt_dmem.host import kernel
    from virt_dmem.host.hvo_bug import Verdict
    from virt_dmem.pools.backends.table import backend

    out.text(f"It is elastic: it takes up to {format_size(elastic['max_bytes'])} when domains start.")
    if backend(record.backend).freeing(record) is Verdict.SUSPECT:
        out.note(
            f"Linux {kernel.release()} may lose huge pages that HVO optimized when they are given back;"
            " 'virt-dmem check' shows it afterwards, and a reboot recovers them."
        )


COMMANDS = (
    Command(
        "pool create",
        "allocate host memory and mount it as a pool",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="PoolAnswer",
    ),
)
