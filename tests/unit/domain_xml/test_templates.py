# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's templates in place of the shipped ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from tests.rig.golden import GOLDEN, canonical
from tests.rig.repository import REPOSITORY
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.errors import ConfigError

Check = Callable[[bytes], None]


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def template(directory: Path, text: str) -> Path:
    (directory / "memory-backing.xml").write_text(text)
    return directory


OURS = "<source type='file'/><access mode='shared'/><allocation mode='ondemand' threads='2'/>"


def test_a_template_of_the_administrator_is_used_in_place_of_ours(tmp_path: Path, require_valid: Check) -> None:
    templates = template(tmp_path, f"<memoryBacking><!-- x -->{OURS}<discard/></memoryBacking>")
    xml = golden("hugepages-in.xml")
    rewritten = apply(xml, templates_dir=templates)
    require_valid(rewritten)
    backing = etree.fromstring(rewritten).find("memoryBacking")
    assert [child.tag for child in backing] == ["source", "access", "allocation", "discard"]
    assert backing.find("allocation").get("threads") == "2"
    assert canonical(unapply(rewritten)) == canonical(xml)
    assert apply(rewritten) == rewritten


def test_an_empty_template_directory_changes_nothing(tmp_path: Path) -> None:
    assert apply(golden("plain-in.xml"), templates_dir=tmp_path) == apply(golden("plain-in.xml"))
    assert apply(golden("plain-in.xml"), templates_dir=tmp_path / "none") == apply(golden("plain-in.xml"))


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "no xml",
        f"<domain>{OURS}</domain>",
        "<memoryBacking/>",
        f"<memoryBacking>{OURS}<hugepages/></memoryBacking>",
        f"<memoryBacking>{OURS}<source type='file'/></memoryBacking>",
        f"<memoryBacking>{OURS.replace('shared', 'private')}</memoryBacking>",
        f"<!DOCTYPE memoryBacking><memoryBacking>{OURS}</memoryBacking>",
    ],
)
def test_a_broken_template_is_refused_by_its_name(tmp_path: Path, broken: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "memory-backing.xml"))):
        apply(golden("plain-in.xml"), templates_dir=template(tmp_path, broken))


def stylesheet() -> etree.XSLT:
    return etree.XSLT(etree.parse(REPOSITORY / "xml-templates/request.xsl"))


@pytest.mark.parametrize(
    "name",
    ["plain", "hugepages", "memfd-shared", "opt-in", "foreign-metadata", "numa", "numa-hugepages"],
)
def test_the_stylesheet_makes_a_domain_that_starts_as_it_is(name: str, require_valid: Check) -> None:
    made = etree.tostring(stylesheet()(etree.fromstring(golden(f"{name}-in.xml"))))
    require_valid(made)
    before, domain = read_domain(golden(f"{name}-in.xml")), read_domain(made)
    assert domain.applied
    assert domain.file_backed
    assert domain.total_bytes == before.total_bytes
    assert len(etree.fromstring(made).findall("metadata")) == 1


def test_the_stylesheet_names_the_pool_that_it_is_told() -> None:
    plain = etree.fromstring(golden("plain-in.xml"))
    assert read_domain(etree.tostring(stylesheet()(plain, pool=etree.XSLT.strparam("guests")))).pool == "guests"
    assert read_domain(etree.tostring(stylesheet()(plain))).pool == ""
