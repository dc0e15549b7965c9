# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool list``, and the columns of a pool."""

from __future__ import annotations

from virt_dmem.cli.columns import BACKEND, PAGES, Column, choose, select, size, table, text
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from virt_dmem.cli.json_schema import Pool
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS", "COLUMNS"]

_ABOUT = """\
If virt-dmemd does not answer, the pools are read from their records (as root),
and reserved memory is shown as unknown."""


def _of_elastic(name: str, key: str, help_text: str) -> Column:
    """Return a column that shows the bytes below ``key`` of elastic pools."""
    return Column(name, lambda row: (row["elastic"] or {}).get(key), help_text, size=True)


COLUMNS = table(
    text("NAME", "name", "name of the pool"),
    BACKEND,
    PAGES,
    size("CAPACITY", "capacity_bytes", "current size; of an elastic pool what it has taken"),
    _of_elastic("MAX", "max_bytes", "the most that an elastic pool may have; - of others"),
    _of_elastic("ROOM", "room_bytes", "how much an elastic pool may take now, beyond its capacity; - of others"),
    size("RESERVED", "reserved_bytes", "memory held by domains; - when virt-dmemd does not answer"),
    size("FREE", "free_bytes", "capacity less reserved"),
    size("READY", "ready_bytes", "free memory that is populated and pre-zeroed"),
    size("TARGET", "ready_goal_bytes", "current target of pre-zeroing"),
    size("LIMIT", "ready_most_bytes", "configured limit of pre-zeroing"),
    text(
        "READY-FOR",
        "ready_policy",
        "domains it is pre-zeroed for: all, recent or off; kernel where the kernel itself pre-zeroes",
    ),
    size("PINNED", "pinned_bytes", "memory returned by guests that is still pinned; not in capacity"),
    text("STATE", "state", "creating, mounting, ready, resizing, draining or destroying"),
    Column(
        "ON-BOOT",
        lambda row: {True: "yes", False: "no"}.get(row["on_boot"], "-"),
        "whether it is restored at each boot: virt-dmem-pool@NAME.service is enabled",
    ),
    text("MOUNT", "mount", "mount point"),
)


class PoolListAnswer:
    """`pool list`."""

    pools: list[Pool]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the pools; from their records when virt-dmemd does not answer."""
    from virt_dmem.cli.pool_rows import pool_rows
    from virt_dmem.config.schema import load_config

    config = load_config(args.config)
    shown = choose(COLUMNS, args.output, "NAME,BACKEND,PAGES,CAPACITY,RESERVED,FREE,STATE,ON-BOOT")
    rows = select(pool_rows(config, out), COLUMNS, args)
    if not args.output and any(row["elastic"] for row in rows):
        shown = choose(COLUMNS, None, "NAME,BACKEND,PAGES,CAPACITY,MAX,RESERVED,FREE,READY,STATE,ON-BOOT")
    out.table(shown, rows, headings=not args.no_headings)
    out.result(pools=rows)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "pool list",
        "list the pools of this host",
        run,
        about=_ABOUT,
        columns=COLUMNS,
        selects=True,
        answer="PoolListAnswer",
    ),
)
