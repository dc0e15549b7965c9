# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify pools of tmpfs: created on this machine's kernel, and never larger together than its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, fake_tree
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.real_pools import reboot
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolShort
from virt_dmem.host import kernel, mounts
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.base import NO_NODE, Job
from virt_dmem.pools.backends.tmpfs import Tmpfs
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.savings import savings

SIZE = 32 * MIB


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


@in_own_mount_namespace
def test_a_tmpfs_pool_is_created_and_destroyed(config: Config) -> None:
    record = manage.create(config, "t", sizes=SIZE, backend="tmpfs")
    assert registry.capacity(record) == {-1: SIZE}
    found = mounts.mount_at(config.pools_dir / "t")
    assert found is not None
    assert f"size={SIZE // 1024}k" in found.options.split(",")
    (saved,) = savings(config)
    assert (saved.gross_bytes, saved.net_bytes, saved.metadata_left_bytes) == (SIZE // 64, 0, SIZE // 64)
    reboot(config, "t")
    assert manage.mount(config, "t") == record
    manage.destroy(config, "t")
    assert registry.records(config) == []
    assert mounts.mount_at(config.pools_dir / "t") is None


@in_own_mount_namespace
def test_tmpfs_pools_together_promise_no_more_than_there_is(config: Config) -> None:
    most = kernel.memory().available_bytes * 2 // 3 // MIB * MIB
    manage.create(config, "a", sizes=most, backend="tmpfs")
    with pytest.raises(PoolShort, match="available"):
        manage.create(config, "b", sizes=most, backend="tmpfs")
    manage.destroy(config, "a")


@in_own_mount_namespace
def test_a_pool_needs_what_it_does_not_have_yet_and_others_may_still_fill_up(
    config: Config, tmp_path: Path
) -> None:
    """A fake tree tells the available memory: 12 GiB; the mounts, in its mountinfo, are real."""
    root = fake_tree(tmp_path / "root", memory=[16 * GIB])
    record = manage.create(config, "t", sizes=SIZE, backend="tmpfs")
    (root / "proc/self/mountinfo").write_text(Path("/proc/self/mountinfo").read_text())
    (Path(record.mount) / "file").write_bytes(b"x" * (SIZE // 2))

    def check(mount: str, size_bytes: int, *others: PoolRecord) -> None:
        wanted = PoolRecord("p", "tmpfs", 4096, mount, {NO_NODE: NodeShare(size_bytes)})
        Tmpfs().check(Job(wanted, others, lambda: None, lambda *_: None, root))

    check(record.mount, 12 * GIB + SIZE // 2)
    with pytest.raises(PoolShort, match=r"12\.0 GiB more, but the host has only 12 GiB available"):
        check(record.mount, 12 * GIB + SIZE // 2 + 4096)
    check("/nowhere", 12 * GIB - SIZE // 2, record)
    with pytest.raises(PoolShort, match=r"12 GiB, but the host has only 12\.0 GiB available"):
        check("/nowhere", 12 * GIB, record)
    (Path(record.mount) / "file").unlink()
    manage.destroy(config, "t")
