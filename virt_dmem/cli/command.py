# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare commands and the columns of their tables. Imports nothing: ``list --json`` goes through here."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from virt_dmem.cli.output import Output
    from virt_dmem.errors import ExitStatus

    Row = Mapping[str, Any]
    Table = Mapping[str, "Column"]

__all__ = ["Command", "Column", "joined", "size", "table", "text"]


class Command:
    """One command: parser, help, manual page, completion and JSON Schema are all made from this.

    ``name`` is what is typed, such as ``pool create``; ``summary`` begins with a verb and has no full stop.
    ``about`` holds the paragraphs below it in ``--help`` and the manual page. ``arguments`` adds to the command's
    own parser. ``columns`` is the table that ``--output`` chooses from. ``answer`` names the type of the ``--json``
    output: a class of the command's own module, or of ``json_schema``.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        run: Callable[[argparse.Namespace, Output], ExitStatus],
        *,
        answer: str,
        about: str = "",
        arguments: Callable[[argparse.ArgumentParser], None] | None = None,
        columns: Table | None = None,
    ) -> None:
        self.name = name
        self.summary = summary
        self.run = run
        self.answer = answer
        self.about = about
        self.arguments = arguments
        self.columns = columns


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


def _or_dash(value: object) -> str:
    return "-" if value is None or value == "" else str(value)
