# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules judge a domain by its name and metadata, whoever wrote them."""

from __future__ import annotations

import pytest

from tests.rig import nova
from tests.rig.cpu_time import seconds
from tests.rig.domain_documents import domain
from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.rules import Judgement, judge, label
from virt_dmem.domain_xml.elements import parse_domain

NOVA = "http://openstack.org/xmlns/libvirt/nova/*"
SPEC = '<nova:extraSpec name="dmem:pool">fast</nova:extraSpec>'


def why_not(rule: AdoptRule, metadata: str = "") -> str:
    (judgement,) = judge([rule], parse_domain(domain(f"<metadata>{metadata}</metadata>")))
    return judgement.why_not


@pytest.mark.parametrize(
    "rule",
    [
        AdoptRule(domain="vm"),
        AdoptRule(domain="v?"),
        AdoptRule(domain="*"),
        AdoptRule(domain="[uv]m"),
        AdoptRule(metadata=NOVA),
        AdoptRule(metadata="http://openstack.org/xmlns/libvirt/nova/1.1"),
        AdoptRule(flavor="dmem.*"),
        AdoptRule(extra_spec="dmem:pool"),
        AdoptRule(extra_spec="dmem:pool=f*t"),
        AdoptRule(metadata=NOVA, domain="v*", flavor="dmem.small", extra_spec="dmem:pool=fast"),
    ],
    ids=str,
)
def test_a_rule_takes_a_domain_that_matches_all_its_patterns(rule: AdoptRule) -> None:
    assert why_not(rule, nova.metadata(specs=SPEC)) == ""


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (AdoptRule(domain="V*"), "its name 'vm' does not match 'V*'"),
        (AdoptRule(domain="v"), "its name 'vm' does not match 'v'"),
        (AdoptRule(metadata="urn:other"), "its metadata have no element of namespace 'urn:other' (http://openst"),
        (AdoptRule(flavor="m1.*"), "its flavor 'dmem.small' does not match 'm1.*'"),
        (AdoptRule(extra_spec="hw:x"), "its flavor has no extra spec 'hw:x'; nova writes them"),
        (
            AdoptRule(extra_spec="dmem:pool=slow"),
            "its extra spec 'dmem:pool' is 'fast', which does not match 'slow'",
        ),
        (AdoptRule(domain="v*", flavor="m1.*"), "its flavor 'dmem.small' does not match 'm1.*'"),
    ],
    ids=str,
)
def test_a_rule_says_why_it_does_not_take_a_domain(rule: AdoptRule, why: str) -> None:
    assert why_not(rule, nova.metadata(specs=SPEC)).startswith(why)


def test_the_first_rule_that_matches_takes_a_domain() -> None:
    rules = [AdoptRule(domain="x"), AdoptRule(domain="v*", rule="two"), AdoptRule(domain="*")]
    found = judge(rules, parse_domain(domain()))
    assert [(one.label, one.why_not) for one in found] == [
        ("1", "its name 'vm' does not match 'x'"),
        ("two", ""),
        ("3", "rule two comes before it"),
    ]
    assert label(7, AdoptRule()) == "7"


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<!-- nova --><?nova x?>",
        "<nova:flavor xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1' name='dmem.small'/>",
        "<x:instance xmlns:x='urn:x'><x:flavor name='dmem.small'/></x:instance>",
        "<x:instance xmlns:x='urn:http://openstack.org/xmlns/libvirt/nova/1.1'>"
        "<x:flavor name='dmem.small'/></x:instance>",
        nova.metadata("m1.small", name='<nova:flavor name="dmem.small"/>'),
        nova.metadata("m1.small", specs='<nova:flavor name="dmem.small"/>'),
        nova.metadata("m1.small", name="&lt;nova:flavor name=&quot;dmem.small&quot;/&gt;"),
    ],
)
def test_only_the_flavor_of_nova_s_instance_is_one(metadata: str) -> None:
    assert why_not(AdoptRule(flavor="dmem.*"), metadata)


def test_an_extra_spec_before_nova_32_is_missing() -> None:
    assert "from 32.0" in why_not(AdoptRule(extra_spec="dmem:pool"), nova.metadata().replace("extraSpecs", "other"))


HOSTILE = [
    nova.metadata("a" * 1_000_000),
    "".join(f"<x:a{number} xmlns:x='urn:{number}'/>" for number in range(20_000)),
    nova.metadata(
        specs="".join(f"<nova:extraSpec name='a{n}'>{'a' * 100}</nova:extraSpec>" for n in range(20_000))
    ),
    f"<x:instance xmlns:x='{'a' * 1_000_000}'/>",
]


@pytest.mark.parametrize("metadata", HOSTILE, ids=["flavor", "elements", "specs", "namespace"])
def test_no_metadata_take_long_whatever_the_pattern(metadata: str) -> None:
    greedy = "*a" * 120 + "b"
    root = parse_domain(domain(f"<metadata>{metadata}</metadata>"))
    rules = [
        AdoptRule(metadata=greedy),
        AdoptRule(flavor=greedy),
        AdoptRule(extra_spec=f"a7={greedy}"),
        AdoptRule(domain=greedy),
    ]
    found: list[Judgement] = []
    assert seconds(lambda: found.extend(judge(rules * 25, root))) < 2
    assert all(0 < len(one.why_not) < 1000 for one in found)
