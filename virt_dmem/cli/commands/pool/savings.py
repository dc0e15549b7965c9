# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem savings``: the struct pages that each pool saves."""

from __future__ import annotations

from virt_dmem.cli.columns import BACKEND, GROSS, LEFT, NET, PAGES, choose, select, size, table, text
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Literal

    from virt_dmem.cli.json_schema import PageSize, says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Gross is the memory that an ordinary host spends on struct pages for the pool's
memory, left is what is still spent, net is the saving. Where the kernel has no
counters for it (before Linux 6.11) the values are estimates, and marked so."""

_COLUMNS = table(
    text("POOL", "pool", "name of the pool"),
    BACKEND,
    PAGES,
    size("SIZE", "size_bytes", "memory that the pool has taken from the host"),
    GROSS,
    LEFT,
    NET,
    text("HOW", "how", "measured by the kernel's counters, or estimated"),
)


class PoolSaving:
    """The saving of one pool; `gross_bytes` = `metadata_left_bytes` + `net_bytes`."""

    pool: Annotated[str, says("name of the pool")]
    backend: Annotated[str, says("kind of its memory")]
    page_size: PageSize
    size_bytes: Annotated[int, says("memory taken from the host; 0 where it is not mounted")]
    gross_bytes: Annotated[int, says("struct pages that an ordinary host keeps for this memory")]
    metadata_left_bytes: Annotated[int, says("struct pages that remain")]
    net_bytes: Annotated[int, says("struct pages that are gone")]
    measured: Annotated[bool, says("counted by the kernel; else it is an estimate")]
    how: Annotated[Literal["measured", "estimated"], says("the same in a word")]


class SavingsAnswer:
    """`savings`."""

    pools: list[PoolSaving]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show the saving of each pool."""
    from dataclasses import asdict

    from virt_dmem.cli.pool_rows import require_readable
    from virt_dmem.config.schema import load_config
    from virt_dmem.pools.savings import savings, why_none

    config = load_config(args.config)
    require_readable(config)
    found = savings(config)
    rows = [asdict(item) | {"how": "measured" if item.measured else "estimated"} for item in found]
    shown = choose(_COLUMNS, args.output, "POOL,SIZE,PAGES,GROSS,LEFT,NET,HOW")
    rows = select(rows, _COLUMNS, args)
    out.table(shown, rows, headings=not args.no_headings)
    if remark := why_none(found):
        out.note(remark)
    out.result(pools=rows)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "savings",
        "show the memory saved by each pool: gross, left and net",
        run,
        about=_ABOUT,
        columns=_COLUMNS,
        selects=True,
        answer="SavingsAnswer",
    ),
)
