# SPDX-License-Identifier: GPL-2.0-or-later
"""rewrite holds for whatever libvirt's own schema allows, not only for samples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.rig.schema_documents import SchemaWriter, domain_schema
from tests.rig.schema_property import examine

SEEDS = st.integers(0, 2**32)
some = settings(max_examples=150)


@pytest.fixture(scope="module")
def writer() -> SchemaWriter:
    return SchemaWriter()


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return domain_schema()


def test_any_document_of_the_schema_is_rewritten_validly_once_and_undone(
    writer: SchemaWriter, schema: etree.RelaxNG
) -> None:
    @some
    @given(seed=SEEDS)
    def each(seed: int) -> None:
        examine(writer.document(seed), schema)

    each()


def test_what_the_schema_does_not_know_is_carried_along(writer: SchemaWriter) -> None:
    @some
    @given(seed=SEEDS)
    def each(seed: int) -> None:
        examine(writer.document(seed, unknown=True), None)

    each()


def test_most_documents_that_are_tried_are_valid_and_are_rewritten(
    writer: SchemaWriter, schema: etree.RelaxNG
) -> None:
    """Else the tests above would test nothing."""
    outcomes = Counter(examine(writer.document(seed), schema) for seed in range(200))
    assert outcomes["rewritten"] > 100
    assert outcomes["not valid for libxml2"] < 80
    assert not [outcome for outcome in outcomes if outcome.startswith("not well-formed")]


def test_what_memory_is_about_occurs_in_the_documents(writer: SchemaWriter) -> None:
    paths = [
        "memoryBacking/hugepages/page[@nodeset]", "memoryBacking/source[@type='memfd']", "memoryBacking/locked",
        "memoryBacking/allocation[@threads]", "cpu/numa/cell[@memAccess='shared']", "cpu/numa/cell/distances",
        "numatune/memory[@placement='auto']", "numatune/memnode", "vcpu[@placement='auto']", "iothreads",
        "metadata/*", "devices/memory[@model='dimm']/source/pagesize", "devices/memory[@model='dimm' and @access]",
        "devices/memory[@model='nvdimm']", "devices/memory[@model='virtio-mem']/target/requested",
        "devices/memory[@model='virtio-pmem']", "devices/filesystem", "devices/interface[@type='vhostuser']",
        "*[local-name() = 'commandline']/*", "*[local-name() = 'override']/*", "//comment()",
        "os/type[@arch='s390x']", "os/type[@arch='ppc64le']", "os/type[@arch='aarch64']",
    ]  # fmt: skip
    seen: Counter[str] = Counter()
    for seed in range(1500):
        root = etree.fromstring(writer.document(seed))
        seen.update(path for path in paths if root.xpath(path))
    assert set(seen) == set(paths), f"never seen: {sorted(set(paths) - set(seen))}"


# What the documents above have found, by the seed that found it first.


@pytest.mark.parametrize(
    "resources",
    [
        "<numatune/>",
        "<iothreads>1</iothreads>",
        "<iothreads>1</iothreads><genid/><iothreadids/>",
        "<memtune/><os><type>hvm</type></os>",
    ],
)
def test_memory_backing_is_put_where_libxml2_still_validates_it(schema: etree.RelaxNG, resources: str) -> None:
    os = "" if "<os>" in resources else "<os><type>hvm</type></os>"
    xml = f"<domain type='kvm'>{resources}<cpu/><title>t</title><name>a</name>{os}</domain>"
    assert examine(xml.encode(), schema) == "rewritten"


def test_a_relative_namespace_does_no_harm(schema: etree.RelaxNG) -> None:
    """Such a document has no canonical form to compare."""
    backing = "<memoryBacking><nosharepages/><hugepages/></memoryBacking>"
    xml = f"<domain type='kvm' xmlns:r='a/b'><name>a</name>{backing}<os><type>hvm</type></os></domain>"
    assert examine(xml.encode(), schema) == "rewritten"
