# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of each table: they drive its header, ``--output`` and the help of the command."""

from __future__ import annotations

import time

from virt_dmem.cli.output import Column
from virt_dmem.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Table = Mapping[str, Column]

__all__ = ["DOMAINS", "EXTENTS", "NODES", "PLAN", "POOLS", "SAVINGS", "STEPS", "choose", "describe"]


def _text(name: str, help_text: str, key: str) -> Column:
    return Column(name, help_text, lambda row: _or_dash(row.get(key)))


def _size(name: str, help_text: str, key: str) -> Column:
    return Column(name, help_text, lambda row: row.get(key), size=True)


def _or_dash(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values)) or "-"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _table(*columns: Column) -> Table:
    return {column.name: column for column in columns}


DOMAINS = _table(
    _text("NAME", "name of the domain", "name"),
    _text("PHASE", "how far its memory has come; - when it holds none", "phase"),
    _size("RESERVED", "memory it holds in pools", "reserved_bytes"),
    Column(
        "POOLS",
        "pools it holds memory of",
        lambda row: _joined(sorted({extent["pool"] for extent in row.get("extents", ())})),
    ),
    Column("ACTIVE", "whether libvirt runs it now (with --applied)", lambda row: "yes" if row["active"] else "no"),
    _text("UUID", "its UUID", "uuid"),
)

EXTENTS = _table(
    _text("ALIAS", "memory backend of QEMU that it backs", "alias"),
    _text("POOL", "pool it lies in", "pool"),
    _size("SIZE", "its size", "size_bytes"),
    _size("PAGES", "size of its pages", "page_size"),
    Column("NODES", "host nodes it lies on", lambda row: _joined(row["nodes"])),
    _text("STATE", "planned, attaching, ready, resizing, detaching or quarantined", "state"),
    _text("PATH", "its file", "path"),
)

BACKENDS = _table(
    _text("BACKEND", "QEMU's id of the memory backend", "id"),
    _text("KIND", "what QEMU made it as", "kind"),
    _size("SIZE", "its size", "size_bytes"),
    _text("POLICY", "NUMA policy that QEMU gave it", "policy"),
    Column("NODES", "host nodes that QEMU was told", lambda row: _joined(row["host_nodes"])),
    Column(
        "PREALLOCATED", "whether QEMU touched all of it itself", lambda row: "yes" if row["preallocated"] else "no"
    ),
    Column("SHARED", "whether it is a shared mapping", lambda row: "yes" if row["shared"] else "no"),
    _text("PATH", "what QEMU was told to open", "path"),
)

STEPS = _table(
    Column("AT", "when the step ended", lambda row: _clock(row["at"])),
    Column("SECONDS", "how long it took", lambda row: f"{row['seconds']:.3f}", right=True),
    _text("STEP", "hook operation, or part of one", "step"),
)

POOLS = _table(
    _text("NAME", "name of the pool", "name"),
    _text("BACKEND", "kind of its memory", "backend"),
    _size("PAGES", "size of its pages", "page_size"),
    _size("CAPACITY", "what it has now", "capacity_bytes"),
    _size("RESERVED", "what domains hold of it; - when virt-dmemd does not answer", "reserved_bytes"),
    _size("FREE", "capacity less reserved", "free_bytes"),
    _size("READY", "what of it is brought in and zeroed ahead", "ready_bytes"),
    _size("TARGET", "how much of it is to be", "ready_goal_bytes"),
    _size("LIMIT", "how much of it virt-dmemd may make ready", "ready_most_bytes"),
    _text(
        "READY-FOR", "which domains: all, recent or off; kernel where that zeroes ahead by itself", "ready_policy"
    ),
    _size("PINNED", "what guests gave back and somebody pins; not in capacity", "pinned_bytes"),
    _text("STATE", "creating, mounting, ready, draining or destroying", "state"),
    _text("MOUNT", "where it is mounted", "mount"),
)

NODES = _table(
    Column("NODE", "host node", lambda row: "any" if row["node"] < 0 else str(row["node"]), right=True),
    POOLS["CAPACITY"],
    POOLS["RESERVED"],
    POOLS["FREE"],
)

SAVINGS = _table(
    _text("POOL", "name of the pool", "pool"),
    _text("BACKEND", "kind of its memory", "backend"),
    _size("PAGES", "size of its pages", "page_size"),
    _size("SIZE", "memory the pool has taken from the host", "size_bytes"),
    _size("GROSS", "struct pages that an ordinary host keeps for so much memory", "gross_bytes"),
    _size("LEFT", "struct pages that are still there", "metadata_left_bytes"),
    _size("NET", "struct pages that are gone: what is saved", "net_bytes"),
    Column("HOW", "measured by the kernel's counters, or estimated", lambda row: row["how"]),
)

PLAN = _table(
    SAVINGS["BACKEND"],
    SAVINGS["PAGES"],
    _size("SIZE", "guest memory in whole pages", "size_bytes"),
    SAVINGS["GROSS"],
    SAVINGS["LEFT"],
    SAVINGS["NET"],
    Column(
        "HERE",
        "whether this version can make such a pool on this host, and which one is recommended",
        lambda row: "recommended" if row["recommended"] else "yes" if row["pool_create"] else "no",
    ),
    _text("CMDLINE", "what to add to the kernel command line", "kernel_command_line"),
)


def choose(table: Table, names: str | None, default: str) -> list[Column]:
    """Return the columns that a comma-separated list names, in its order; ``default`` where there is no list.

    :raise UsageError: When one does not exist.
    """
    wanted = [name.strip().upper() for name in (names or default).split(",")]
    for name in wanted:
        if name not in table:
            raise UsageError(f"There is no column {name!r}.", hint=f"The columns are: {', '.join(table)}.")
    return [table[name] for name in wanted]


def describe(table: Table) -> str:
    """Return the help on a table's columns."""
    width = max(map(len, table))
    return "columns:\n" + "\n".join(f"  {column.name:<{width}}  {column.help}" for column in table.values())
