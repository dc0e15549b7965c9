# SPDX-License-Identifier: GPL-2.0-or-later
"""A mark of a rule occurs in each domain that the rule takes, and is safe in a shell."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.rig import nova
from tests.rig.domain_documents import domain
from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.marks import marks
from virt_dmem.domain_xml.adoption.rules import judge
from virt_dmem.domain_xml.elements import parse_domain

NOVA = "http://openstack.org/xmlns/libvirt/nova/"


@pytest.mark.parametrize(
    ("rule", "mark"),
    [
        (AdoptRule(domain="*"), "<name>"),
        (AdoptRule(domain="instance-*"), "<name>instance-"),
        (AdoptRule(domain="in stance"), "<name>in"),
        (AdoptRule(metadata="http://kubevirt.io"), "http://kubevirt.io"),
        (AdoptRule(metadata="*"), "<name>"),
        (AdoptRule(metadata=f"{NOVA}*", domain="instance-*", flavor="dmem.*"), "dmem."),
        (AdoptRule(flavor="*.dmem"), NOVA),
        (AdoptRule(flavor="a*"), NOVA),
        (AdoptRule(extra_spec="dmem:pool=fast"), "dmem:pool"),
        (AdoptRule(domain="$(reboot)`x`'\"*"), "<name>"),
        (AdoptRule(domain="x" * 200), f"<name>{'x' * 40}"),
    ],
    ids=str,
)
def test_the_mark_of_a_rule_is_the_beginning_of_its_rarest_pattern(rule: AdoptRule, mark: str) -> None:
    assert marks([rule]) == [mark]


def test_rules_with_the_same_mark_have_it_once() -> None:
    assert marks([AdoptRule(flavor="dmem.a"), AdoptRule(flavor="dmem.b"), AdoptRule(flavor="*")]) == [
        "dmem.a", "dmem.b", NOVA,
    ]  # fmt: skip
    assert marks([]) == []


SPEC = '<nova:extraSpec name="a.b">a</nova:extraSpec>'
TEXT = st.text(st.characters(min_codepoint=32, blacklist_categories=["Cs"], blacklist_characters="/"), min_size=1)
PATTERN = st.text(st.sampled_from("ab.&<>\"'*?[] é"), max_size=6)


@given(name=TEXT, flavor=TEXT, patterns=st.tuples(PATTERN, PATTERN, PATTERN, PATTERN))
def test_a_domain_that_a_rule_takes_has_its_mark(
    name: str, flavor: str, patterns: tuple[str, str, str, str]
) -> None:
    root = parse_domain(domain(f"<metadata>{nova.metadata(specs=SPEC)}</metadata>"))
    next(root.iter("name")).text = name
    next(root.iter("{*}flavor")).set("name", flavor)
    xml = etree.tostring(root, encoding="unicode")
    rule = AdoptRule(domain=patterns[0], flavor=patterns[1], metadata=patterns[2], extra_spec=patterns[3])
    (mark,) = marks([rule])
    assert re.fullmatch(r"(<name>)?[A-Za-z0-9_.:/@+,-]*", mark)
    if name.strip() and not judge([rule], parse_domain(xml.encode()))[0].why_not:
        assert mark in xml
