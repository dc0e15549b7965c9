# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said about the mount of a pool; what is found: tests of mount_state."""

from __future__ import annotations

from pathlib import Path

from tests.rig.checked_machine import bare_machine, mounted
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch import mounts
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB

MOUNT = "/run/virt-dmem/pools/p"


def test_a_mount_that_no_record_has_is_told_of(tmp_path: Path) -> None:
    machine = bare_machine(tmp_path)
    config = machine.own_config()
    config.pool_records_dir.mkdir(parents=True)
    above = ("/run/virt-dmem/pools", "tmpfs", "rw")
    mounted(machine, ("/", "ext4", "rw"), above, (f"{MOUNT}+1", "hugetlbfs", "rw"))
    (one,) = mounts.deviations(Sight(config, [], machine.root))
    assert (one.code, one.subject) == ("pool-mount-changed", "p+1")
    assert f"{MOUNT}+1 (hugetlbfs) is mounted where pools are" in one.message
    assert f"'umount {MOUNT}+1'" in one.hint
    mounted(
        machine, (MOUNT, "tmpfs", "rw"), ("/run/virt-dmem", "tmpfs", "rw")
    )  # of a namespace that this one came of
    assert [*mounts.deviations(Sight(config, [], machine.root))] == []
    mounted(machine, above, (f"{MOUNT}+1", "hugetlbfs", "rw"))
    (config.pool_records_dir / "p+1.json").write_text("one that cannot be read, or of a pool that is not complete")
    assert [*mounts.deviations(Sight(config, [], machine.root))] == []


def test_the_pool_is_named_with_what_happened_and_the_command(tmp_path: Path) -> None:
    machine = bare_machine(tmp_path)
    record = PoolRecord("p", "tmpfs", 4096, MOUNT, {-1: NodeShare(MIB, MIB)}, state="ready")
    (one,) = mounts.deviations(Sight(Config(), [record], machine.root))
    assert one.subject == "p"
    assert one.message == f"Pool p, mounted by virt-dmem at {MOUNT}, is not mounted any more."
    assert one.hint == "Run 'virt-dmem pool mount p' once no domain holds memory of it."
    mounted(machine, (MOUNT, "hugetlbfs", "rw"))
    one = next(mounts.deviations(Sight(Config(), [record], machine.root)))
    assert one.message.endswith("is replaced by none (hugetlbfs).")
    assert one.hint == f"Run 'umount {MOUNT}', then run 'virt-dmem pool mount p' once no domain holds memory of it."
