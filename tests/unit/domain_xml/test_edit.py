# SPDX-License-Identifier: GPL-2.0-or-later
"""Elements inserted and removed again, with the white space around them."""

from __future__ import annotations

import pytest
from lxml import etree

from virt_dmem.domain_xml.edit import insert, last_of, lay_out, remove, swap

PRETTY = "<domain>\n  <name>a</name>\n  <memory>1</memory>\n</domain>"
DOCUMENTS = [PRETTY, "<domain><name>a</name><memory>1</memory></domain>", "<domain>\n\t<name>a</name>\n</domain>"]


def printed(root: etree._Element) -> str:
    return etree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("text", DOCUMENTS)
@pytest.mark.parametrize("behind", [None, 0, -1])
def test_removing_an_inserted_element_gives_the_same_text(text: str, behind: int | None) -> None:
    root = etree.fromstring(text)
    new = etree.Element("new")
    insert(root, new, None if behind is None else root[behind])
    assert printed(root) != text
    remove(new)
    assert printed(root) == text


def test_an_inserted_element_is_on_a_line_of_its_own_with_the_indentation_of_the_others() -> None:
    root = etree.fromstring(PRETTY)
    insert(root, etree.Element("new"), root[0])
    assert printed(root) == PRETTY.replace("<memory>", "<new/>\n  <memory>")


def test_swapping_keeps_the_text_around_both() -> None:
    root = etree.fromstring(PRETTY)
    swap(root[0], etree.Element("new"))
    assert printed(root) == PRETTY.replace("<name>a</name>", "<new/>")


def test_the_last_of_some_elements_is_found() -> None:
    root = etree.fromstring(PRETTY)
    assert last_of(root, "memory", "name") is root[1]
    assert last_of(root, "vcpu") is None


def test_children_are_laid_out_a_line_each() -> None:
    root = etree.fromstring("<domain>\n  <cpu/>\n</domain>")
    for name in ("a", "b"):
        etree.SubElement(root[0], name)
    lay_out(root[0])
    assert printed(root) == "<domain>\n  <cpu>\n    <a/>\n    <b/>\n  </cpu>\n</domain>"
