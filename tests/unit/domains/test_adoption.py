# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook's marks follow the rules, and a pool that cannot serve a domain is named with its rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.rig import nova
from tests.rig.domain_documents import domain
from tests.unit.domains.conftest import config_in, write_record
from virt_dmem.config.schema import AdoptRule, Config
from virt_dmem.domain_xml.adoption.adopt import adopt
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domains.adoption import are_marks_current, pool_of, require_servable, write_marks
from virt_dmem.errors import DomainRefused, PoolNotFound

RULES = (
    AdoptRule(rule="nova", flavor="dmem.*", pool="here"),
    AdoptRule(domain="lab-*", unsuitable="refuse"),
)


def with_rules(config: Config, *rules: AdoptRule) -> Config:
    return replace(config, adopt=rules)


def test_the_marks_are_those_of_the_rules_and_gone_without_them(tmp_path: Path) -> None:
    without = config_in(tmp_path)
    config = with_rules(without, *RULES)
    state = Path(config.daemon.state_dir)
    write_marks(without)
    assert are_marks_current(without)
    assert not are_marks_current(config)
    assert write_marks(config)
    assert (state / "adopt").read_text() == "dmem. <name>lab-\n"
    assert (state / "adopt-refuse").read_text() == "<name>lab-\n"
    assert are_marks_current(config)
    before = (state / "adopt").stat().st_ino
    assert not write_marks(config)
    assert (state / "adopt").stat().st_ino == before, "it was right"
    write_marks(with_rules(without, RULES[0]))
    assert not (state / "adopt-refuse").exists()
    assert not are_marks_current(config)
    write_marks(without)
    assert not (state / "adopt").exists()


DISK = "<devices><disk><driver name='qemu' cache='none'/><source file='/x'/><target dev='vda'/></disk></devices>"


def taken(rule: AdoptRule, more: str = "", memory: str = "<memory>1048576</memory>") -> DomainMemory:
    xml = domain(f"<memoryBacking>{nova.FILE_BACKED}</memoryBacking>{more}", memory=memory)
    found = adopt([rule], DomainDocument(xml))
    assert found is not None
    return found


def test_a_pool_that_cannot_serve_a_domain_is_named_with_its_rule(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    rule = AdoptRule(rule="mine", domain="vm", pool="here")
    with pytest.raises(PoolNotFound, match=r"Rule mine of .* domain vm, .* There is no pool 'here' on this host"):
        pool_of(config, taken(rule))
    write_record(config, "here", "hugetlbfs")
    assert pool_of(config, taken(rule)).pool == "here"
    require_servable(config, taken(rule))
    with pytest.raises(DomainRefused, match="not a multiple of the page size"):
        require_servable(config, taken(rule, memory="<memory>1049600</memory>"))
    write_record(config, "dm", "dmemfs")
    with pytest.raises(DomainRefused, match="cannot work on pool 'dm'"):
        require_servable(config, taken(replace(rule, pool="dm"), DISK))
