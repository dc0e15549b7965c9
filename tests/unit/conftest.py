# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the unit tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lxml import etree

from tests.rig.golden import GOLDEN
from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig
from virt_dmem.daemon.wiring import Components, build

DOMAIN_RNG = Path("/usr/share/libvirt/schemas/domain.rng")


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
