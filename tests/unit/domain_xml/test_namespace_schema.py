# SPDX-License-Identifier: GPL-2.0-or-later
"""The metadata that apply writes is valid by docs/reference/dmem-1.0.rng, also as libvirt prints it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from tests.rig.repository import REPOSITORY
from virt_dmem.domain_xml.elements import NAMESPACE

GOLDEN = REPOSITORY / "tests/unit/golden"
REWRITTEN = [*sorted(GOLDEN.glob("*-out.xml")), *sorted((GOLDEN / "libvirt").glob("*-applied.xml"))]


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(REPOSITORY / "docs/reference/dmem-1.0.rng"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in REWRITTEN])
def test_what_we_wrote_is_valid(schema: etree.RelaxNG, path: Path) -> None:
    (ours,) = etree.parse(path).getroot().iterfind(f"metadata/{{{NAMESPACE}}}memory")
    assert schema.validate(etree.fromstring(etree.tostring(ours, with_tail=False))), schema.error_log


@pytest.mark.parametrize(
    "content",
    [
        "<dmem:memory {} pool=''/>",
        "<dmem:memory {} pool='../x'/>",
        "<dmem:memory {} size='1G'/>",
        "<dmem:memory {}><dmem:replaced added='everything' elements='source'/></dmem:memory>",
        "<dmem:memory {}><other/></dmem:memory>",
        "<dmem:extent {}/>",
    ],
)
def test_what_means_nothing_is_not_valid(schema: etree.RelaxNG, content: str) -> None:
    assert not schema.validate(etree.fromstring(content.format(f"xmlns:dmem='{NAMESPACE}'")))


def test_the_example_of_the_reference_is_valid(schema: etree.RelaxNG) -> None:
    text = (REPOSITORY / "docs/guide/xml.md").read_text("utf-8")
    example = etree.fromstring(text.split("```xml\n")[1].split("```")[0])
    assert schema.validate(etree.fromstring(etree.tostring(example[0], with_tail=False)))
