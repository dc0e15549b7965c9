# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare, choose and describe the columns of tables."""

from __future__ import annotations

from virt_dmem.errors import UsageError
from virt_dmem.text import did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Row = Mapping[str, Any]
    Table = Mapping[str, "Column"]

__all__ = [
    "Column",
    "table",
    "text",
    "size",
    "joined",
    "choose",
    "describe",
    "BACKEND",
    "PAGES",
    "GROSS",
    "LEFT",
    "NET",
]


class Column:
    """One column of a table: drives its header, ``--output`` and the help.

    ``value`` returns the cell for one object of the JSON output. With ``size`` it is a number of bytes, printed as
    a size, or ``None`` where that is unknown.
    """

    def __init__(
        self,
        name: str,
        value: Callable[[Row], Any],
        help_text: str = "",
        *,
        right: bool = False,
        size: bool = False,
    ) -> None:
        self.name = name
        self.help = help_text
        self.value = value
        self.right = right or size
        self.size = size


def text(name: str, key: str, help_text: str = "") -> Column:
    """Return a column that shows the text below ``key``, or a dash."""
    return Column(name, lambda row: _or_dash(row.get(key)), help_text)


def size(name: str, key: str, help_text: str = "") -> Column:
    """Return a column that shows the bytes below ``key`` as a size."""
    return Column(name, lambda row: row.get(key), help_text, size=True)


def joined(values: Iterable[object]) -> str:
    """Return values as one cell, separated by commas, or a dash."""
    return ",".join(map(str, values)) or "-"


def table(*columns: Column) -> Table:
    """Return columns by their names."""
    return {column.name: column for column in columns}


def choose(table: Table, names: str | None, default: str) -> list[Column]:
    """Return the columns that a comma-separated list names, in its order; those of ``default`` without a list.

    :raise UsageError: When a column does not exist.
    """
    wanted = [name.strip().upper() for name in (names or default).split(",")]
    for name in wanted:
        if name not in table:
            hint = f"{did_you_mean(name, table)}Available columns: {', '.join(table)}."
            raise UsageError(f"Unknown column {name!r}.", hint=hint)
    return [table[name] for name in wanted]


def describe(table: Table) -> str:
    """Return the help on a table's columns."""
    width = max(map(len, table))
    return "columns:\n" + "\n".join(f"  {column.name:<{width}}  {column.help}" for column in table.values())


def _or_dash(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


BACKEND = text("BACKEND", "backend", "kind of memory")
PAGES = size("PAGES", "page_size", "page size")
GROSS = size("GROSS", "gross_bytes", "struct pages that an ordinary host keeps for this memory")
LEFT = size("LEFT", "metadata_left_bytes", "struct pages that remain")
NET = size("NET", "net_bytes", "struct pages that are gone: the saving")
