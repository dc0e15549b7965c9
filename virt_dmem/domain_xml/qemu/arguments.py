# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a command line of QEMU as QEMU does: options, and the keys and values of each.

``-option`` and ``--option`` are the same, and the value is the next argument (``lookup_opt`` in QEMU's
softmmu/vl.c). A value is ``KEY=VALUE,…``, a doubled comma stands for one, the first key may be left out
(``util/keyval.c``); or, of ``-object`` and ``-device``, JSON, in which QEMU accepts single quotes as well
(``qobject/json-lexer.c``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lxml import etree

__all__ = ["FIRST", "QEMU_NAMESPACE", "Option", "arguments_of", "options"]

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

FIRST = ""
"""The key of a first value that is given without one: the type of a machine, the driver of a device."""

_PIECE = re.compile(r"(?:[^,]|,,)+")
_TOKEN = re.compile(
    r'"(?P<double>(?:\\.?|[^"\\])*+)"?'
    r"|'(?P<single>(?:\\.?|[^'\\])*+)'?"
    r"""|(?P<sign>[:{}\[\],])|(?P<word>[^\s"':{}\[\],]++)""",
    re.DOTALL,
)
"""Always matches where a string begins, even one that never ends: no part of a text is read twice."""
_ESCAPE = re.compile(r"\\(?:u(?P<code>[0-9a-fA-F]{4})|(?P<char>.))", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One option with its value."""

    name: str
    """Without dashes; ``machine`` also for ``-M``."""
    text: str
    """The value as it is."""
    values: Mapping[str, str]
    """The values by key, of JSON at any depth. QEMU once took ``_`` for ``-`` in keys: all are ``-`` here."""

    def get(self, key: str, *, first: bool = False) -> str:
        """Return the value of a key, empty without one. ``first``: it may be the value without a key."""
        return self.values.get(key, self.values.get(FIRST, "") if first else "")


def arguments_of(root: etree._Element) -> list[str]:
    """Return the arguments that ``<qemu:commandline>`` adds to libvirt's own."""
    path = f"{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}arg"
    return [argument.get("value", "") for argument in root.iterfind(path)]


def options(arguments: Sequence[str]) -> Iterator[Option]:
    """Yield the options of a command line, each with the next argument, even where it takes none."""
    for argument, text in itertools.pairwise([*arguments, ""]):
        if len(argument) > 1 and argument.startswith("-"):
            name = argument.removeprefix("-").removeprefix("-")
            yield Option("machine" if name == "M" else name, text, _values(text))


def _values(text: str) -> dict[str, str]:
    if text.startswith("{"):
        return dict(_of_json(text))
    found: dict[str, str] = {}
    for number, piece in enumerate(_PIECE.findall(text)):
        key, separator, value = piece.replace(",,", ",").partition("=")
        if not separator and number == 0:
            key, value = FIRST, key
        found[key.replace("_", "-")] = value
    return found


def _of_json(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys with a string, number or word as their value."""
    before, key = "", None
    for token in _TOKEN.finditer(text):
        if token["sign"]:
            key = before if token["sign"] == ":" else None
            continue
        before = _unescaped(token["double"] or token["single"] or token["word"] or "")
        if key is not None:
            yield key.replace("_", "-"), before
            key = None


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: chr(int(found["code"], 16)) if found["code"] else found["char"], text)
