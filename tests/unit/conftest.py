# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit tests share.

``VIRT_DMEM_REGENERATE=1 pytest tests/unit/domain_xml/test_rewrite.py`` writes ``golden/*-out.xml`` anew from
what the code does now; look at the difference before you keep it.

``golden/libvirt`` is recorded: what libvirt 9.0 printed (``dumpxml --inactive --security-info``) after it had
defined the golden input (``NAME-before.xml``) and output (``NAME-applied.xml``), with type qemu and libvirt's own
CPU model. ``VIRT_DMEM_REGENERATE=1 pytest tests/libvirt/test_golden.py`` records anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lxml import etree

from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig
from virt_dmem.daemon.wiring import Components, build

GOLDEN = Path(__file__).parent / "golden"
DOMAIN_RNG = Path("/usr/share/libvirt/schemas/domain.rng")


def canonical(xml: bytes) -> bytes:
    """The document in canonical form: what has to be the same after apply and unapply."""
    return etree.tostring(etree.fromstring(xml).getroottree(), method="c14n", with_comments=True)


def without_blanks(xml: bytes) -> bytes:
    """Without the text that consists of blanks only."""
    root = etree.fromstring(xml)
    for element in root.iter():
        element.text = element.text if (element.text or "").strip() else None
        element.tail = element.tail if (element.tail or "").strip() else None
    return etree.tostring(root, method="c14n")


def as_libvirt_reads_it(xml: bytes) -> bytes:
    """What is left of a document for libvirt: no blanks, no comments, no order in <memoryBacking> and <source>."""
    root = etree.fromstring(without_blanks(xml), etree.XMLParser(remove_comments=True))
    for parent in (*root.iterfind("memoryBacking"), *root.iterfind("devices/memory/source")):
        parent[:] = sorted(parent, key=lambda element: element.tag)
    return etree.tostring(root, method="c14n")


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Components]:
    """The daemon's parts on a host without pools."""
    parts = build(
        Config(
            daemon=DaemonConfig(state_dir=str(tmp_path), run_dir=str(tmp_path)),
            libvirt=LibvirtConfig(uri="test:///default"),
        )
    )
    yield parts
    asyncio.run(parts.close())


@pytest.fixture(scope="session")
def require_valid() -> Callable[[bytes], None]:
    """Check XML against libvirt's own schema (package libvirt-daemon, or libvirt-common)."""
    schema = etree.RelaxNG(etree.parse(DOMAIN_RNG))

    def check(xml: bytes) -> None:
        if not schema.validate(etree.fromstring(xml)):
            pytest.fail(f"libvirt's schema refuses it: {schema.error_log}\n{xml.decode()}")

    return check


@pytest.fixture
def require_golden() -> Callable[[bytes, str], None]:
    """Compare with a file in ``golden``, or write that file where VIRT_DMEM_REGENERATE is set."""

    def check(xml: bytes, name: str) -> None:
        file = GOLDEN / name
        if os.environ.get("VIRT_DMEM_REGENERATE"):
            file.write_bytes(xml)
        assert file.read_text("utf-8") == xml.decode()

    return check
