# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that falls short of pages of 1 GiB is asked again, and a refusal tells want from fragmentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import elastic_record
from tests.rig.fake_tree import BOOT, GIB, fake_tree
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolShort
from virt_dmem.host import huge_pages
from virt_dmem.pools.backends.base import Job
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.elastic import contiguous


def node_of_gigantic_pages(root: Path, monkeypatch: pytest.MonkeyPatch, *gets: int) -> list[float]:
    """A fake of a kernel that finds so many pages of 1 GiB at each try; return the pauses between them."""
    got, paused = [*gets], list[float]()

    def set_persistent(page_size: int, node: int, pages: int, **_: object) -> None:
        knob = root / f"sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages"
        before = int(knob.read_text())
        knob.write_text(str(min(pages, before + (got.pop(0) if got else 0))))

    monkeypatch.setattr(huge_pages, "set_persistent", set_persistent)
    monkeypatch.setattr(contiguous.time, "sleep", paused.append)
    return paused


def test_pages_of_1g_that_are_in_use_for_a_moment_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_tree(tmp_path / "root", memory=[16 * GIB], hvo=None)
    record = elastic_record(Config(), "p+1", {0: 3 * GIB}, boot_id=BOOT, state="creating")
    record.page_size = GIB
    record.nodes[0].got_bytes = 0
    said: list[str] = []
    job = Job(record, (), lambda: None, lambda doing, *_: said.append(doing), root)
    paused = node_of_gigantic_pages(root, monkeypatch, 1, 0, 0, 1, 1)
    Hugetlbfs().acquire(job)
    assert record.got_bytes == 3 * GIB
    assert paused == [0.2, 0.5]
    assert said.count("Waiting for memory in use of node 0") == 2


def test_pages_of_1g_that_do_not_come_are_refused_and_plan_host_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_tree(tmp_path / "root", memory=[16 * GIB], hvo=None)
    record = elastic_record(Config(), "p+1", {0: 3 * GIB}, boot_id=BOOT, state="creating")
    record.page_size = GIB
    record.nodes[0].got_bytes = 0
    paused = node_of_gigantic_pages(root, monkeypatch, 1)
    with pytest.raises(PoolShort) as caught:
        Hugetlbfs().acquire(Job(record, (), lambda: None, lambda *_: None, root))
    assert caught.value.had == {0: GIB}
    assert len(paused) == len(contiguous.PAUSES_SECONDS)
    assert "so fragmented that the kernel finds no 2 GiB" in caught.value.hint
    assert "plan-host" in caught.value.hint


def test_memory_that_is_missing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_tree(tmp_path / "root", memory=[16 * GIB], hvo=None)
    record = elastic_record(Config(), "p+1", {0: 14 * GIB}, boot_id=BOOT, state="creating")
    record.page_size = GIB
    record.nodes[0].got_bytes = 0
    paused = node_of_gigantic_pages(root, monkeypatch, 1)
    with pytest.raises(PoolShort):
        Hugetlbfs().acquire(Job(record, (), lambda: None, lambda *_: None, root))
    assert paused == []
