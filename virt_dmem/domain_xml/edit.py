# SPDX-License-Identifier: GPL-2.0-or-later
"""Insert elements into XML and remove them, so that the white space comes out right both ways.

Each insertion gives the new element the text that followed its place, and puts an indentation before it; so
removing it restores the text exactly, whatever it was.
"""

from __future__ import annotations

from lxml import etree

__all__ = ["insert", "remove", "swap", "lay_out", "last_of"]


def insert(parent: etree._Element, element: etree._Element, after: etree._Element | None) -> None:
    """Insert ``element`` behind its sibling ``after``; None: first."""
    indentation = _indentation_in(parent)
    if after is None:
        element.tail, parent.text = parent.text, indentation
        parent.insert(0, element)
    else:
        element.tail, after.tail = after.tail, indentation
        parent.insert(parent.index(after) + 1, element)


def remove(element: etree._Element) -> None:
    """Undo ``insert``."""
    parent, before = element.getparent(), element.getprevious()
    assert parent is not None  # noqa: S101  only ever called below the root
    if before is None:
        parent.text = _joined(parent.text, element.tail)
    else:
        before.tail = _joined(before.tail, element.tail)
    parent.remove(element)


def _joined(before: str | None, after: str | None) -> str | None:
    return before + (after or "") if before and before.strip() else after


def swap(old: etree._Element, new: etree._Element) -> None:
    """Replace ``old`` by ``new``."""
    parent = old.getparent()
    assert parent is not None  # noqa: S101  only ever called below the root
    new.tail, old.tail = old.tail, None
    parent.replace(old, new)


def last_of(parent: etree._Element, *names: str) -> etree._Element | None:
    """Return the last child with one of ``names``, None without any."""
    return next((child for child in reversed(parent) if child.tag in names), None)


def lay_out(parent: etree._Element) -> None:
    """Put each child of ``parent`` on a line, if ``parent`` is on one; not for elements whose text must stay."""
    outside = _indentation(parent)
    inside = f"{outside}  " if outside else ""
    if len(parent):
        parent.text = inside
        for child in parent:
            child.tail = inside
        parent[-1].tail = outside


def _indentation(element: etree._Element) -> str:
    """Return the line break and blanks before ``element``; empty where it does not begin a line."""
    before, parent = element.getprevious(), element.getparent()
    if parent is None:
        return "\n"
    text = (parent.text if before is None else before.tail) or ""
    return "\n" + text.rpartition("\n")[2] if "\n" in text and not text.strip() else ""


def _indentation_in(parent: etree._Element) -> str:
    """Return the line break and blanks before a new child of ``parent``."""
    if len(parent):
        return _indentation(parent[0])
    return f"{outside}  " if (outside := _indentation(parent)) else ""
