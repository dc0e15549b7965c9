# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool show``."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool
from virt_dmem.cli.columns import Column, text
from virt_dmem.cli.command import Command
from virt_dmem.cli.commands.pool.list import COLUMNS
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
READY is memory that is populated and zeroed ahead of the next start, TARGET what
is to be, LIMIT the most that may be ([prefault] in virt-dmem.toml(5)). Below the
nodes it shows the segments, if there are several, and why no more is pre-zeroed:
switched off, no target, or paused because the host is busy."""

_SHOWN = ("NAME", "BACKEND", "PAGES", "READY", "TARGET", "LIMIT", "READY-FOR", "PINNED", "STATE", "MOUNT")
_SEGMENT = text("SEGMENT", "name", "one of its mounts")
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
    out.table([_NODE, *(COLUMNS[name] for name in ("CAPACITY", "RESERVED", "FREE", "READY"))], row["nodes"])
    if len(row["segments"]) > 1:
        out.text("")
        out.table([_SEGMENT, *(COLUMNS[name] for name in ("CAPACITY", "RESERVED"))], row["segments"])
        out.text("\nA segment can shrink or be removed only while nothing of it is reserved.")
    if row["elastic"]:
        out.text(f"\n{_limits(out, row['elastic'])}")
    if row["ready_note"]:
        note = row["ready_note"]
        out.text(f"\nPre-zeroed: {_prezeroed(out, row)}. {note[:1].upper()}{note[1:]}.")
    out.result(pool=row)
    return ExitStatus.DONE


def _limits(out: Output, elastic: Mapping[str, Any]) -> str:
    """Return the limits of an elastic pool as sentences."""
    least = f"always has {out.size(elastic['min_bytes'])}" if elastic["min_bytes"] else "may be empty"
    return (
        f"The pool is elastic: it {least}, may have {out.size(elastic['max_bytes'])}, and can take"
        f" {out.size(elastic['room_bytes'])} now. It leaves {out.size(elastic['keep_free_bytes'])} to the host, and"
        f" keeps memory that no domain holds for {elastic['linger_seconds']} s."
    )


def _prezeroed(out: Output, row: Mapping[str, Any]) -> str:
    """Return how much is pre-zeroed, of how much that is to be."""
    if not row["ready_goal_bytes"]:
        return "nothing"
    return f"{out.size(row['ready_bytes'])} of {out.size(row['ready_goal_bytes'])}"


COMMANDS = (
    Command(
        "pool show",
        "show one pool, node by node",
        run,
        about=_ABOUT,
        arguments=add_pool,
        answer="PoolAnswer",
    ),
)
