# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare, choose and describe the columns of tables."""

from __future__ import annotations

from virt_dmem.errors import UsageError
from virt_dmem.text import did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    RowT = TypeVar("RowT", bound=Mapping[str, Any])

    Row = Mapping[str, Any]
    Table = Mapping[str, "Column"]

__all__ = [
    "Column",
    "table",
    "text",
    "size",
    "joined",
    "choose",
    "add_selection",
    "select",
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


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose and order rows; ``select`` reads them."""
    parser.add_argument("--no-headings", action="store_true", help="omit the line of column names")
    parser.add_argument(
        "--sort", metavar="COLUMN", help="order the rows by a column, sizes by their number of bytes"
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--filter",
        metavar="CONDITION",
        action="append",
        default=[],
        help="only rows for which this holds: COLUMN=PATTERN, COLUMN!=PATTERN, or of sizes COLUMN>=4G"
        " (repeatable: all have to hold)",
    )


def select(rows: Iterable[RowT], table: Table, args: argparse.Namespace) -> list[RowT]:
    """Return the rows that ``--filter`` lets through, in the order of ``--sort``.

    :raise UsageError: When a column does not exist, or a condition is none.
    """
    chosen = list(rows)
    for condition in args.filter:
        holds = _condition(condition, table)
        chosen = [row for row in chosen if holds(row)]
    if args.sort:
        column = _one(table, args.sort)
        chosen.sort(key=lambda row: _rank(column.value(row)))
    return chosen[::-1] if args.reverse else chosen


def _one(table: Table, name: str) -> Column:
    """Return a column by its name.

    :raise UsageError: When it does not exist, or several are named.
    """
    column, *more = choose(table, name, "")
    if more:
        raise UsageError(f"{name!r} is not one column.", hint="Order the rows by one column.")
    return column


def _rank(value: object) -> tuple[bool, object]:
    """Return a key by which values of one column are ordered, unknown ones first."""
    return value is not None, "" if value is None else value


def _condition(text: str, table: Table) -> Callable[[Row], bool]:
    """Return whether a row fulfils a condition such as ``NAME=web*``."""
    import fnmatch  # noqa: PLC0415 -- for --filter only
    import operator  # noqa: PLC0415
    import re  # noqa: PLC0415

    from virt_dmem.units import parse_size  # noqa: PLC0415

    found = re.fullmatch(r"\s*([\w-]+?)\s*(!=|<=|>=|=|<|>)(.*)", text, re.DOTALL)
    if not found:
        raise UsageError(
            f"{text!r} is not a condition.", hint="Write a column, =, !=, <, <=, > or >=, and a value: 'NAME=web*'."
        )
    column = _one(table, found[1])
    wanted = found[3].strip()
    names = {"=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
    compare = getattr(operator, names[found[2]])
    if column.size:
        size = 0 if wanted == "0" else parse_size(wanted)
        return lambda row: (value := column.value(row)) is not None and bool(compare(value, size))
    if found[2] not in {"=", "!="}:
        raise UsageError(f"{column.name} is not a size: {text!r}.", hint="Compare it by = or !=, with a pattern.")
    return lambda row: fnmatch.fnmatchcase(str(column.value(row)), wanted) == (found[2] == "=")


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
