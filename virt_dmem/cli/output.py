# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command prints: tables and sentences for people, one JSON object with ``--json``.

Names of domains come from others: whatever a terminal would obey is shown as an escape. Passwords in XML
are masked before anything is shown.
"""

from __future__ import annotations

import json
import re
import sys

from virt_dmem.ipc.version import SCHEMA_VERSION
from virt_dmem.text import printable
from virt_dmem.units import format_size

TYPE_CHECKING = False  # what is imported here costs every command, and typing 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from virt_dmem.errors import DmemError

    Row = Mapping[str, Any]

__all__ = ["Output", "Column", "masked", "unified_diff"]

_LARGE = 1 << 20
_GRAPHICS_AUTH = r"""\b(passwd\s*=\s*)("[^"]*"|'[^']*')"""


class Column:
    """One column of a table: drives its header, ``--output`` and the help.

    ``value`` makes what is shown of an object of the JSON output; a table is made of the same objects. Where
    ``size`` is set it is a number of bytes, or ``None`` where that is not known, and printed as a size.
    """

    def __init__(
        self, name: str, help_text: str, value: Callable[[Row], Any], *, right: bool = False, size: bool = False
    ) -> None:
        self.name = name
        self.help = help_text
        self.value = value
        self.right = right or size
        self.size = size


class Output:
    """Where the answer goes: stdout, as text or JSON; notes and errors go to stderr."""

    def __init__(self, *, as_json: bool, in_bytes: bool = False) -> None:
        self.as_json = as_json
        self.in_bytes = in_bytes

    def size(self, size_bytes: int | None) -> str:
        """Return a size as it is to be shown: for people, or a number of bytes if that was asked for."""
        if size_bytes is None:
            return "-"
        return str(size_bytes) if self.in_bytes else format_size(size_bytes)

    def text(self, text: str) -> None:
        """Print ``text`` and a newline, unless JSON was asked for."""
        if not self.as_json:
            sys.stdout.write(printable(text, keep="\n\t") + "\n")

    def result(self, **fields: object) -> None:
        """Print ``fields`` as the one JSON object, if JSON was asked for."""
        if self.as_json:
            sys.stdout.write(_indented({"schema": SCHEMA_VERSION, **fields}) + "\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Row]) -> None:
        """Print ``rows`` under the names of ``columns``, unless JSON was asked for."""
        cells = [[column.name for column in columns]]
        for row in rows:
            values = ((column, column.value(row)) for column in columns)
            cells.append([self.size(value) if column.size else printable(value) for column, value in values])
        widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
        for line in cells:
            padded = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, columns, strict=True)
            )
            self.text("  ".join(padded).rstrip())

    def document(self, text: bytes) -> None:
        """Print ``text`` (UTF-8) as it is, for another program; a terminal gets what it would obey as escapes."""
        if sys.stdout.isatty():
            sys.stdout.write(printable(text.decode(), keep="\n\t"))
        else:
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()

    def note(self, text: str) -> None:
        """Tell the person in front of the terminal something that is no part of the answer."""
        sys.stderr.write(f"virt-dmem: {printable(text)}\n")

    def error(self, error: DmemError) -> None:
        """Report a failure: two lines on stderr, and an object on stdout if JSON was asked for."""
        self.note(error.message)
        if error.hint:
            sys.stderr.write(f"  {printable(error.hint)}\n")
        self.result(error={"code": error.code, "message": error.message, "hint": error.hint})


def _indented(answer: object) -> str:
    """Return an answer as JSON for people, too; of 10 000 domains it has 4 MB.

    It is ASCII: what is more stands there escaped, exact and nothing that a terminal would obey.
    """
    compact = json.dumps(answer)
    if len(compact) < _LARGE:
        return json.dumps(answer, indent=2)  # in Python, for the module has no C for it
    import msgspec  # noqa: PLC0415 -- 40 ms

    return msgspec.json.format(compact, indent=2)


def masked(xml: bytes) -> str:
    """Return domain XML (UTF-8) as text to be shown: the values of VNC and SPICE passwords are replaced.

    ``passwd`` of ``<graphics>`` is what libvirt itself holds back without VIR_DOMAIN_XML_SECURE
    (virDomainGraphicsAuthDefFormatAttr in its domain_conf.c).
    """
    return re.sub(_GRAPHICS_AUTH, r"\1'***'", xml.decode())


def unified_diff(before: bytes, after: bytes) -> str:
    """Return the difference of two domain XMLs, passwords masked; empty when there is none."""
    import difflib  # noqa: PLC0415 -- for who asks for it

    lines = difflib.unified_diff(
        masked(before).splitlines(), masked(after).splitlines(), "before", "after", lineterm=""
    )
    return "\n".join(lines)
