# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify what all backends share: mounts and their failures, on this machine's kernel, and capacities."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import PoolBusy, PoolError
from virt_dmem.host import mounts
from virt_dmem.pools.backends import base
from virt_dmem.pools.backends.base import Job, run_program
from virt_dmem.pools.backends.tmpfs import Tmpfs
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB


class Kind(Tmpfs):
    """A tmpfs with mount options of choice."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        return self.options


def record_at(directory: Path, **got_bytes: int) -> PoolRecord:
    """Return the record of a pool that took these bytes of each node, to be mounted at the directory."""
    directory.mkdir(exist_ok=True)
    nodes = {int(node.removeprefix("node")): NodeShare(size, size) for node, size in got_bytes.items()}
    return PoolRecord("p", "tmpfs", 4096, str(directory), nodes, state="ready")


def job(record: PoolRecord) -> Job[PoolRecord]:
    return Job(record, (), lambda: None, lambda *_: None)


@contextmanager
def mounted(kind: Kind, record: PoolRecord) -> Iterator[None]:
    kind.mount(job(record))
    yield
    kind.unmount(record)


@in_own_mount_namespace
def test_mount_options_that_the_kernel_rejects_are_followed_by_the_next(tmp_path: Path) -> None:
    record = record_at(tmp_path / "p")
    with mounted(Kind("size=4M,not-an-option", "size=2M", "size=1M"), record):
        found = mounts.mount_at(tmp_path / "p")
        assert found is not None
        assert {"size=2048k", "mode=711"} <= set(found.options.split(","))


@in_own_mount_namespace
def test_a_mount_that_the_kernel_rejects_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """The reason is that of mount(8), which names the option since util-linux 2.39."""
    record = record_at(tmp_path / "p")
    reason = "mount: .*(wrong fs type|nknown parameter)"
    with pytest.raises(PoolError, match=f"Pool p could not be mounted at {tmp_path}/p: {reason}"):
        Kind("not-an-option").mount(job(record))
    assert mounts.mount_at(tmp_path / "p") is None


@in_own_mount_namespace
def test_a_pool_in_use_stays_mounted_and_one_whose_last_process_exits_is_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, record = Kind("size=1M"), record_at(tmp_path / "p")
    kind.mount(job(record))
    fd = os.open(tmp_path / "p/file", os.O_CREAT | os.O_RDWR)
    monkeypatch.setattr(base, "_UNMOUNT_SECONDS", 0.0)
    with pytest.raises(PoolBusy, match="target is busy"):
        kind.unmount(record)
    assert kind.mounted(record)
    monkeypatch.setattr(base, "_UNMOUNT_SECONDS", 300.0)
    threading.Timer(0.3, os.close, (fd,)).start()
    kind.unmount(record)
    assert not kind.mounted(record)
    with pytest.raises(PoolError, match="not mounted") as caught:
        kind.unmount(record)
    assert not isinstance(caught.value, PoolBusy), "waiting would not help"


@in_own_mount_namespace
def test_the_capacity_is_what_was_taken_as_far_as_it_is_mounted(tmp_path: Path) -> None:
    record = record_at(tmp_path / "p", node0=3 * MIB, node1=2 * MIB)
    kind = Kind(f"size={5 * MIB}")
    assert kind.capacity(record) == {0: 0, 1: 0}
    with mounted(kind, record):
        assert kind.capacity(record) == {0: 3 * MIB, 1: 2 * MIB}
        record.nodes[1].got_bytes = MIB
        assert kind.capacity(record) == {0: 3 * MIB, 1: MIB}
    with mounted(Kind(f"size={4 * MIB}"), record_at(tmp_path / "p")):
        record.nodes[1].got_bytes = 2 * MIB
        assert sum(kind.capacity(record).values()) == 4 * MIB, "it was shrunk"


@in_own_mount_namespace
def test_another_file_system_in_the_place_of_a_pool_is_not_the_pool(tmp_path: Path) -> None:
    record = record_at(tmp_path / "p", node0=MIB)
    assert run_program("mount", "-t", "ramfs", "none", record.mount) == ""
    assert Kind().mounted(record) is None
    assert Kind().capacity(record) == {0: 0}


def test_a_program_that_fails_is_told_by_the_first_line_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run_program("true") == ""
    assert run_program("sh", "-c", "printf '\\n%s\\nmore\\n' $LC_ALL >&2; exit 3") == "C"
    assert run_program("sh", "-c", "exit 3") == "sh ended with status 3"
    assert run_program("sh", "-c", "echo a warning >&2") == ""
