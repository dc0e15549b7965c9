# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that need struct pages, in domains on memory without them: at start, and while they run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.live import read_guest
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domains import passthrough
from virt_dmem.errors import DomainRefused
from virt_dmem.pools.record import NodeShare, PoolRecord

MIB, GIB = 1 << 20, 1 << 30
RAW, PAGES = "c7a5fdbd-edaf-9455-926a-d65c16db1809", "c7a5fdbd-edaf-9455-926a-d65c16db1810"
HOSTDEV = "<interface type='hostdev'><mac address='52:54:00:00:00:01'/></interface>"


def xml(uuid: str, devices: str) -> bytes:
    text = f"<domain type='kvm' id='1'><name>g</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
    text += "<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>"
    return f"{text}<devices>{devices}</devices></domain>".encode()


@pytest.fixture
def known(tmp_path: Path) -> tuple[Ledger, Inventory]:
    """A domain on a dmemfs pool and one on a pool of huge pages; only the pools' records are there."""
    (tmp_path / "pools").mkdir()
    ledger = Ledger(tmp_path / "ledger.sqlite", "boot-1")
    for uuid, pool, backend in ((RAW, "dm", "dmemfs"), (PAGES, "hp", "hugetlbfs")):
        record = PoolRecord(pool, backend, 2 * MIB, f"/none/{pool}", {0: NodeShare(GIB)}, state="ready")
        (tmp_path / f"pools/{pool}.json").write_bytes(msgspec.json.encode(record))
        extent = ExtentPlan("pc.ram", pool, 64 * MIB, 2 * MIB, "bind", ((0, 64 * MIB),))
        ledger.reserve(Plan(uuid, uuid, (extent,)), {"pc.ram": Path(f"/{pool}")}, {(pool, 0): GIB})
    return ledger, Inventory(msgspec.convert({"daemon": {"state_dir": str(tmp_path)}}, Config), ledger)


def test_what_a_network_gave_a_domain_is_refused_when_it_starts(known: tuple[Ledger, Inventory]) -> None:
    with pytest.raises(DomainRefused, match=r"'dm', whose memory .* 52:54:00:00:00:01 is a host device by VFIO"):
        passthrough.refuse(*known, read_domain(xml(RAW, HOSTDEV)))
    passthrough.refuse(*known, read_domain(xml(PAGES, HOSTDEV)))
    passthrough.refuse(*known, read_domain(xml(RAW, "")))


def test_guests_with_such_a_device_and_such_memory_are_found(known: tuple[Ledger, Inventory]) -> None:
    guests = [read_guest(xml(uuid, HOSTDEV)) for uuid in (RAW, PAGES, "c7a5fdbd-edaf-9455-926a-d65c16db1811")]
    assert passthrough.on_raw_memory(*known, guests) == {RAW: "dm"}
    assert passthrough.on_raw_memory(*known, [read_guest(xml(RAW, ""))]) == {}
