# SPDX-License-Identifier: GPL-2.0-or-later
"""``check`` tells what others changed, without the daemon."""

from __future__ import annotations

from pathlib import Path

from tests.rig.checked_machine import bare_machine
from tests.rig.fake_tree import BOOT, put
from tests.rig.pool_records import write_record
from virt_dmem.monitoring.checks import host
from virt_dmem.pools.backends.checks import Status
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.record import NodeShare
from virt_dmem.units import MIB


def test_a_host_without_pools_is_unchanged(tmp_path: Path) -> None:
    result = host.unchanged(bare_machine(tmp_path))
    assert result.status is Status.PASS
    assert "huge pages" in result.message
    assert "memory blocks" not in result.message, "nobody recorded them"


def test_every_change_is_named_with_its_fix(tmp_path: Path) -> None:
    machine = bare_machine(tmp_path)
    mount = "/run/virt-dmem/pools/p"
    share = {0: NodeShare(8 * MIB, 8 * MIB)}
    record = HugetlbfsRecord("p", "hugetlbfs", 2 * MIB, mount, share, state="ready", boot_id=BOOT, optimized=True)
    machine.own_config().pool_records_dir.mkdir(parents=True)
    write_record(machine.own_config(), record)
    put(machine.root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "1\n")
    result = host.unchanged(machine)
    assert result.status is Status.FAIL
    assert "Somebody switched HVO off" in result.message
    assert "to 1, where pool p took 4: 6 MiB of them are gone." in result.message
    assert "is not mounted any more" in result.message
    assert "virt-dmem pool mount p" in result.hint
