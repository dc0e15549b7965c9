# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command prints: tables and sentences for people, one JSON object with ``--json``.

Names of domains come from others: whatever a terminal would obey is shown as an escape. Passwords in XML
are masked before anything is shown.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virt_dmem.errors import DmemError
from virt_dmem.ipc.messages import SCHEMA_VERSION

__all__ = ["Output", "Column", "Row", "printable", "masked", "unified_diff"]

Row = Mapping[str, Any]
"""One object as it is in the JSON output; a table is made of the same objects."""

_PASSWORD = re.compile(r"""\b(passwd\s*=\s*)("[^"]*"|'[^']*')""")


@dataclass(frozen=True)
class Column:
    """One column of a table: drives its header, ``--output`` and the help."""

    name: str
    help: str
    value: Callable[[Row], str]
    right: bool = False


class Output:
    """Where the answer goes: stdout, as text or JSON; notes and errors go to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def text(self, text: str) -> None:
        """Print ``text`` and a newline, unless JSON was asked for."""
        if not self.as_json:
            sys.stdout.write(printable(text, keep="\n\t") + "\n")

    def result(self, **fields: object) -> None:
        """Print ``fields`` as the one JSON object, if JSON was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps({"schema": SCHEMA_VERSION, **fields}, indent=2) + "\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Row]) -> None:
        """Print ``rows`` under the names of ``columns``, unless JSON was asked for."""
        cells = [[column.name for column in columns]]
        cells += [[printable(column.value(row)) for column in columns] for row in rows]
        widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
        for line in cells:
            padded = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, columns, strict=True)
            )
            self.text("  ".join(padded).rstrip())

    def note(self, text: str) -> None:
        """Tell the person in front of the terminal something that is no part of the answer."""
        sys.stderr.write(f"virt-dmem: {printable(text)}\n")

    def error(self, error: DmemError) -> None:
        """Report a failure: two lines on stderr, and an object on stdout if JSON was asked for."""
        self.note(error.message)
        if error.hint:
            sys.stderr.write(f"  {printable(error.hint)}\n")
        self.result(error={"code": error.code, "message": error.message, "hint": error.hint})


def printable(text: str, *, keep: str = "") -> str:
    """Return ``text`` with everything a terminal could obey (but ``keep``) as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def masked(xml: bytes) -> str:
    """Return domain XML (UTF-8) as text to be shown: the values of VNC and SPICE passwords are replaced.

    ``passwd`` of ``<graphics>`` is what libvirt itself holds back without VIR_DOMAIN_XML_SECURE
    (virDomainGraphicsAuthDefFormatAttr in its domain_conf.c).
    """
    return _PASSWORD.sub(r"\1'***'", xml.decode())


def unified_diff(before: bytes, after: bytes) -> str:
    """Return the difference of two domain XMLs, passwords masked; empty when there is none."""
    lines = difflib.unified_diff(
        masked(before).splitlines(), masked(after).splitlines(), "before", "after", lineterm=""
    )
    return "\n".join(lines)
