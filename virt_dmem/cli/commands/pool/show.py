# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool show``."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool
from virt_dmem.cli.columns import Column
from virt_dmem.cli.command import Command
from virt_dmem.cli.commands.pool.list import COLUMNS
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_SHOWN = ("NAME", "BACKEND", "PAGES", "READY", "TARGET", "LIMIT", "READY-FOR", "PINNED", "STATE", "MOUNT")
_NODE = Column("NODE", lambda row: "any" if row["node"] < 0 else str(row["node"]), "host node", right=True)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show one pool, node by node."""
    from virt_dmem.cli.pool_rows import pool_rows, row_of
    from virt_dmem.config.schema import load_config
    from virt_dmem.pools import registry

    config = load_config(args.config)
    row = next((row for row in pool_rows(config, out) if row["name"] == args.name), None)
    if row is None:
        row = row_of(registry.segments(config, args.name))
    out.table([COLUMNS[name] for name in _SHOWN], [row])
    out.text("")
    out.table([_NODE, *(COLUMNS[name] for name in ("CAPACITY", "RESERVED", "FREE"))], row["nodes"])
    out.result(pool=row)
    return ExitStatus.DONE


COMMANDS = (Command("pool show", "show one pool, node by node", run, arguments=add_pool, answer="PoolAnswer"),)
