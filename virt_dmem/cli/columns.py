# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose and describe the columns of tables, and declare those that several commands show."""

from __future__ import annotations

from virt_dmem.cli.command import Column, size, text
from virt_dmem.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virt_dmem.cli.command import Table

__all__ = ["BACKEND", "GROSS", "LEFT", "NET", "PAGES", "choose", "describe"]

BACKEND = text("BACKEND", "backend", "kind of memory")
PAGES = size("PAGES", "page_size", "page size")
GROSS = size("GROSS", "gross_bytes", "struct pages that an ordinary host keeps for this memory")
LEFT = size("LEFT", "metadata_left_bytes", "struct pages that remain")
NET = size("NET", "net_bytes", "struct pages that are gone: the saving")


def choose(table: Table, names: str | None, default: str) -> list[Column]:
    """Return the columns that a comma-separated list names, in its order; those of ``default`` without a list.

    :raise UsageError: When a column does not exist.
    """
    wanted = [name.strip().upper() for name in (names or default).split(",")]
    for name in wanted:
        if name not in table:
            raise UsageError(f"Unknown column {name!r}.", hint=f"Available columns: {', '.join(table)}.")
    return [table[name] for name in wanted]


def describe(table: Table) -> str:
    """Return the help on a table's columns."""
    width = max(map(len, table))
    return "columns:\n" + "\n".join(f"  {column.name:<{width}}  {column.help}" for column in table.values())
