# SPDX-License-Identifier: GPL-2.0-or-later
"""Print answers: tables and sentences for people, one JSON object with ``--json``.

Names of domains are untrusted: control characters are shown as escapes. Passwords in XML are masked before anything
is shown.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

from virt_dmem.ipc.version import SCHEMA_VERSION
from virt_dmem.text import printable

TYPE_CHECKING = False  # what is imported here costs every command, and typing 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from virt_dmem.cli.columns import Column, Row
    from virt_dmem.errors import DmemError

__all__ = ["Output", "masked", "unified_diff", "local_time"]

_LARGE = 1 << 20
_GRAPHICS_AUTH = r"""\b(passwd\s*=\s*)("[^"]*"|'[^']*')"""


class Output:
    """Write the answer to stdout, as text or JSON; notes and errors go to stderr."""

    def __init__(self, *, as_json: bool, in_bytes: bool = False) -> None:
        self.as_json = as_json
        self.in_bytes = in_bytes

    def size(self, size_bytes: int | None) -> str:
        """Return a size for people, with ``--bytes`` as a number; a dash where it is unknown."""
        if size_bytes is None:
            return "-"
        if self.in_bytes:
            return str(size_bytes)
        from virt_dmem.units import format_size  # noqa: PLC0415 -- 'list --json' shows no sizes for people

        return format_size(size_bytes)

    def text(self, text: str) -> None:
        """Print ``text`` and a newline, unless JSON was asked for."""
        if not self.as_json:
            _to_stdout(sys.stdout.write, printable(text, keep="\n\t") + "\n")

    def result(self, **fields: object) -> None:
        """Print ``fields`` as the one JSON object, if JSON was asked for."""
        if self.as_json:
            _to_stdout(sys.stdout.write, _indented({"schema": SCHEMA_VERSION, **fields}) + "\n")

    def line(self, **fields: object) -> None:
        """Print ``fields`` as an object in one line, if JSON was asked for: one of many answers."""
        if self.as_json:
            _to_stdout(sys.stdout.write, json.dumps({"schema": SCHEMA_VERSION, **fields}) + "\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Row], *, headings: bool = True) -> None:
        """Print ``rows`` under the names of ``columns``, unless JSON was asked for."""
        cells = [[column.name for column in columns]] if headings else []
        for row in rows:
            values = ((column, column.value(row)) for column in columns)
            cells.append([self.size(value) if column.size else printable(value) for column, value in values])
        widths = [max((len(line[index]) for line in cells), default=0) for index in range(len(columns))]
        for line in cells:
            padded = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, columns, strict=True)
            )
            self.text("  ".join(padded).rstrip())

    def painted(self, text: str) -> None:
        """Print ``text`` that is ``printable`` already but for colours (``screen``), unless JSON was asked for."""
        if not self.as_json:
            _to_stdout(sys.stdout.write, text)

    def document(self, text: bytes) -> None:
        """Print ``text`` (UTF-8) unchanged for another program; on a terminal control characters become escapes."""
        if sys.stdout.isatty():
            _to_stdout(sys.stdout.write, printable(text.decode(), keep="\n\t"))
        else:
            _to_stdout(sys.stdout.buffer.write, text)
            _to_stdout(sys.stdout.buffer.flush)

    def flush(self) -> None:
        """Write what is buffered.

        :raise OSError: When the file on stdout is on a full disk, for example; names it.
        """
        _to_stdout(sys.stdout.flush)

    def note(self, text: str) -> None:
        """Print a line for the operator, which is not part of the answer, on stderr."""
        sys.stderr.write(f"virt-dmem: {printable(text)}\n")

    def error(self, error: DmemError) -> None:
        """Report a failure: two lines on stderr, with its code, and an object on stdout if JSON was asked for."""
        self.note(error.message)
        sys.stderr.write(f"  {f'{printable(error.hint)} ' if error.hint else ''}[{error.code}]\n")
        self.result(error={"code": error.code, "message": error.message, "hint": error.hint})


def _to_stdout(write: Callable[..., object], *what: object) -> None:
    """Write something to stdout; an error then names the file there."""
    try:
        write(*what)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.path.realpath("/proc/self/fd/1")) from error


def _indented(answer: object) -> str:
    """Return an answer as indented JSON; that of 10 000 domains has 4 MB.

    It is ASCII: everything else is escaped, exactly, and a terminal finds no control characters in it.
    """
    compact = json.dumps(answer)
    if len(compact) < _LARGE:
        return json.dumps(answer, indent=2)  # slow: with an indent json uses no C code
    import msgspec  # noqa: PLC0415 -- 40 ms

    return msgspec.json.format(compact, indent=2)


def masked(xml: bytes) -> str:
    """Return domain XML (UTF-8) as text with the VNC and SPICE passwords masked.

    ``passwd`` of ``<graphics>`` is what libvirt itself omits without VIR_DOMAIN_XML_SECURE
    (virDomainGraphicsAuthDefFormatAttr in its domain_conf.c).
    """
    return re.sub(_GRAPHICS_AUTH, r"\1'***'", xml.decode())


def unified_diff(before: bytes, after: bytes) -> str:
    """Return the unified diff of two domain XMLs, passwords masked; empty when there is none."""
    import difflib  # noqa: PLC0415 -- only some commands print one

    lines = difflib.unified_diff(
        masked(before).splitlines(), masked(after).splitlines(), "before", "after", lineterm=""
    )
    return "\n".join(lines)


def local_time(at: float) -> str:
    """Return seconds since the epoch as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
