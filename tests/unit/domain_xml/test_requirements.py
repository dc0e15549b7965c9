# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains against the properties of a pool."""

from __future__ import annotations

import pytest

from tests.rig.domain_documents import CELLS, device, domain
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.requirements import require_whole_pages
from virt_dmem.errors import DomainRefused
from virt_dmem.units import GIB, MIB


def test_blocks_smaller_than_a_page_are_refused() -> None:
    mem = device("virtio-mem", size=1024).replace("</target>", "<block>2048</block></target>")
    cells = read_domain(domain(f"<devices>{mem}</devices>", cells=CELLS)).cells[2:]
    require_whole_pages("vm", cells, 2 * MIB)
    with pytest.raises(DomainRefused, match=r"virtiomem0 .*blocks of 2 MiB.*1024 MiB"):
        require_whole_pages("vm", cells, GIB)
