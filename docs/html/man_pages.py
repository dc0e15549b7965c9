# SPDX-License-Identifier: GPL-2.0-or-later
"""Let Sphinx read manual pages: as man(1) formats them, with headings, emphasis and links between them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.parsers import Parser

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTIONS = ("1", "5", "8")
_COLUMNS = 96
_MARGIN = 7
"""Columns before the text below a heading."""
_SUBHEADING = 3
"""Columns before a heading of the second level."""
_STRUCK = re.compile(r"(?:(?P<bold>.)\x08(?P=bold))|(?:_\x08(?P<italic>.))|(?P<plain>[^\x08])")
_PAGE = re.compile(r"(?P<name>[\w.-]+)\((?P<section>\d)\)")
_NOT_CODE = "text with emphasis"
"""The source of a block: Sphinx colours a block as code if its source and its text are the same, or it has none."""
_Piece = tuple[str, str]


class ManualPage(Parser):
    """Reads a manual page in roff."""

    supported = ("man",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill ``document`` with the sections of the page; its title is that of its header."""
        lines = [_pieces(line) for line in _formatted(inputstring)]
        self._document = document
        self._build = document.settings.env
        name, section = _text(lines[0]).split(")")[0].lower().split("(")
        levels = [self._section(document, f"{name}({section})")]
        body: list[list[_Piece]] = []
        for line in lines[1:-1]:  # without header and footer
            if level := _level(line):
                self._add_text(levels[-1], body)
                body = []
                del levels[level:]
                levels.append(self._section(levels[-1], _text(line).strip()))
            else:
                body.append(line)
        self._add_text(levels[-1], body)

    def _section(self, parent: nodes.Element, title: str) -> nodes.section:
        section = nodes.section("", nodes.title(title, title), names=[nodes.fully_normalize_name(title)])
        parent += section
        self._document.note_implicit_target(section, section)
        return section

    def _add_text(self, section: nodes.Element, lines: list[list[_Piece]]) -> None:
        while lines and not _text(lines[-1]):
            lines.pop()
        while lines and not _text(lines[0]):
            lines.pop(0)
        if not lines:
            return
        block = nodes.literal_block(_NOT_CODE, "", classes=["manual-page"])
        for line in lines:
            for kind, text in [*_dedented(line), ("plain", "\n")]:
                block += _node(kind, text)
        section += self._linked(block)

    def _linked(self, block: nodes.literal_block) -> nodes.literal_block:
        """Make links of the names of this project's pages: a bold name, and its section behind it."""
        children, done = block.children, nodes.literal_block(_NOT_CODE, "", classes=block["classes"])
        for child, after in zip(children, [*children[1:], nodes.Text("")], strict=True):
            found = _PAGE.match(child.astext() + after.astext()) if isinstance(child, nodes.strong) else None
            if found and self._is_ours(found["name"], found["section"]):
                of: dict[str, Any] = {"refdomain": "std", "reftype": "doc", "refexplicit": True, "refwarn": True}
                target = f"/docs/man/{found['name']}"
                done += addnodes.pending_xref("", child, reftarget=target, refdoc=self._build.docname, **of)
            else:
                done += child
        return done

    def _is_ours(self, name: str, section: str) -> bool:
        return (Path(self._build.srcdir) / f"docs/man/{name}.{section}").exists()


def _formatted(page: str) -> list[str]:
    """Return the lines of a page as man prints them on a typewriter: bold and italics are struck over."""
    look = {"MANWIDTH": str(_COLUMNS), "MAN_KEEP_FORMATTING": "1", "GROFF_NO_SGR": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["man", "--no-hyphenation", "--no-justification", "--local-file", "-"],
        input=page, capture_output=True, text=True, check=True, env=os.environ | look,
    )  # fmt: skip
    return done.stdout.strip().splitlines()


def _pieces(line: str) -> list[_Piece]:
    """Return a line as pieces of one kind each: plain, bold or italic."""
    found: list[_Piece] = []
    for match in _STRUCK.finditer(line):
        kind, text = str(match.lastgroup), match[str(match.lastgroup)]
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


def _text(line: list[_Piece]) -> str:
    return "".join(text for _, text in line)


def _level(line: list[_Piece]) -> int:
    """Return 1 and 2 for headings, which are bold and begin where text does not; 0 for text."""
    indent = len(_text(line)) - len(_text(line).lstrip())
    bold = all(kind == "bold" for kind, text in line if text.strip())
    return {0: 1, _SUBHEADING: 2}.get(indent, 0) if line and bold else 0


def _dedented(line: list[_Piece]) -> Iterator[_Piece]:
    if line:
        (kind, text), *rest = line
        yield kind, text[min(_MARGIN, len(text) - len(text.lstrip())) :]
        yield from rest


def _node(kind: str, text: str) -> nodes.Node:
    match kind:
        case "bold":
            return nodes.strong(text, text)
        case "italic":
            return nodes.emphasis(text, text)
        case _:
            return nodes.Text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the parser for the sections that there are pages of."""
    for section in SECTIONS:
        app.add_source_suffix(f".{section}", "man")
    app.add_source_parser(ManualPage)
    return {"parallel_read_safe": True}
