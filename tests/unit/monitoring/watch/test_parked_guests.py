# SPDX-License-Identifier: GPL-2.0-or-later
"""A parked guest whose state file or memory is gone is told of, unless its pool is just not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import put
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, ParkedStep, Phase
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.parked_guests import parked_guests
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


@pytest.mark.parametrize(
    ("state", "memory", "mounted", "told"),
    [
        (True, True, True, ""),
        (False, True, True, "its state file"),
        (False, False, False, "its state file"),
        (True, False, True, "its memory"),
        (True, False, False, ""),
    ],
)
def test_it_is_told_what_of_it_is_gone(
    tmp_path: Path, *, state: bool, memory: bool, mounted: bool, told: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "this boot")
    record = PoolRecord(
        "p", "tmpfs", 4096, str(tmp_path / "run/pools/p"), {-1: NodeShare(4096, 4096)}, state="ready"
    )
    path, file = tmp_path / f"run/pools/p/libvirt-{UUID}/pc.ram", tmp_path / "state"
    ledger.adopt(
        Extent(
            id=0, uuid=UUID, alias="pc.ram", segment=SegmentId("p"), path=path, size_bytes=4096, page_size=4096,
            policy="none", state=ExtentState.POPULATED, boot_id="this boot", link="", shares={-1: 4096},
        ),
        "guest",
    )  # fmt: skip
    ledger.set_phase(UUID, Phase.PARKED)
    look, root = parked_guests(ledger), tmp_path / "root"
    own = f"31 21 0:41 / {record.mount} rw,nosuid,nodev,noexec - tmpfs virt-dmem-p rw\n" if mounted else ""
    put(root / "proc/self/mountinfo", f"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n{own}")
    (tmp_path / "run/pools").mkdir(parents=True)  # which others may pass
    for there, what in ((state, file), (memory, path)):
        if there:
            put(what, "x")
    sight = Sight(Config(), [record], root)
    assert [*look(sight)] == [], "it is not parked"
    ledger.set_parked(UUID, ParkedStep.PARKED, file)
    found = [*look(sight)]
    assert [one.code for one in found] == ["parked-guest-lost"] * bool(told)
    for one in found:
        assert f"Domain guest is parked, and cannot go on: {told}" in one.message
        assert f"'virt-dmem unpark --discard {UUID}'" in one.hint
