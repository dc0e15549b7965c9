# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain is adopted if a rule takes it and its memory can come from a pool as its XML is."""

from __future__ import annotations

import pytest

from tests.rig import nova
from tests.rig.domain_documents import APPLIED, domain, metadata
from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.adopt import adopt, decide, rule_of
from virt_dmem.domain_xml.elements import parse_domain
from virt_dmem.domain_xml.reader import DomainDocument
from virt_dmem.errors import AdoptionRefused, DomainXmlInvalid

BACKING = f"<memoryBacking>{nova.FILE_BACKED}</memoryBacking>"
IGNORE = AdoptRule(rule="mine", domain="v*", pool="guests")
REFUSE = AdoptRule(rule="mine", domain="v*", pool="guests", unsuitable="refuse")


@pytest.mark.parametrize("backing", [BACKING, APPLIED])
def test_a_domain_of_shared_files_gets_the_pool_of_the_rule(backing: str) -> None:
    xml = domain(backing)
    memory = adopt([AdoptRule(domain="x"), IGNORE, AdoptRule(domain="*", pool="other")], DomainDocument(xml))
    assert memory is not None
    assert (memory.pool, memory.rule, memory.managed, memory.file_backed) == ("guests", "mine", False, True)
    assert memory.cells == DomainDocument(xml).memory().cells
    assert rule_of([IGNORE], parse_domain(xml)) == "mine"


@pytest.mark.parametrize("rules", [[], [AdoptRule(domain="x")]], ids=["no rules", "no match"])
def test_a_domain_that_no_rule_takes_is_not_adopted(rules: list[AdoptRule]) -> None:
    assert adopt(rules, DomainDocument(domain(BACKING))) is None
    assert rule_of(rules, parse_domain(domain(BACKING))) == ""


def test_a_domain_that_asks_for_pool_memory_itself_is_none_of_the_rules_business() -> None:
    xml = domain(metadata(" pool='own'") + BACKING)
    assert adopt([REFUSE], DomainDocument(xml)) is None
    verdict = decide([IGNORE], parse_domain(xml))
    assert (verdict.asks, verdict.taken, verdict.adopted) == (True, None, None)


PRIVATE = "<cell id='0' memory='512' unit='MiB' memAccess='private'/>"


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (domain(), "it is ordinary memory"),
        (domain("<memoryBacking><hugepages/><source type='file'/></memoryBacking>"), "it is of huge pages"),
        (domain("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"), "it is a memfd"),
        (domain("<memoryBacking><source type='anonymous'/></memoryBacking>"), "it is ordinary memory"),
        (domain("<memoryBacking><source type='file'/></memoryBacking>"), "it is a file that is not shared"),
        (domain(BACKING, cells=PRIVATE), "has private memory"),
        (domain(BACKING + "<launchSecurity type='sev'/>"), "has encrypted or protected memory"),
        (domain(BACKING, vcpu="<vcpu placement='auto'>2</vcpu>"), "leaves the choice of host nodes to numad"),
        (domain(BACKING, machine="arch='x86_64' machine='strange'"), "'strange' on 'x86_64' is not known"),
        (domain(BACKING, head="type='xen'"), "of type 'xen'"),
    ],
)
def test_a_domain_with_other_memory_is_left_alone_or_rejected_as_the_rule_says(xml: bytes, why: str) -> None:
    assert adopt([IGNORE], DomainDocument(xml)) is None
    assert rule_of([REFUSE], parse_domain(xml)) == ""
    verdict = decide([IGNORE], parse_domain(xml))
    assert why in verdict.unsuitable
    assert (verdict.adopted, verdict.refusal()) == (None, None)
    with pytest.raises(
        AdoptionRefused, match=r"Rule mine of .*adopt.* takes domain vm, whose memory cannot"
    ) as refused:
        adopt([REFUSE], DomainDocument(xml))
    assert why in refused.value.message
    assert "file_backed_memory" in refused.value.hint


def test_what_is_no_domain_is_refused() -> None:
    with pytest.raises(DomainXmlInvalid):
        adopt([IGNORE], DomainDocument(b"<network/>"))
