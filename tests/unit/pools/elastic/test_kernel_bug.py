# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that lose optimized pages when they are freed get no elastic pool that would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.elastic_records import elastic_record
from tests.rig.fake_tree import fake_tree, put
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError
from virt_dmem.pools.elastic import kernel_bug


def host(tmp_path: Path, release: str, *, hvo: str = "0") -> Path:
    root = fake_tree(tmp_path, hvo=hvo)
    put(root / "proc/sys/kernel/osrelease", f"{release}\n")
    return root


def test_a_pool_with_hvo_is_rejected_on_such_a_kernel(tmp_path: Path) -> None:
    record = elastic_record(Config(), state="creating")
    with pytest.raises(PoolError, match=r"6.12.117 loses huge pages") as caught:
        kernel_bug.reject(record, root=host(tmp_path, "6.12.117"))
    assert "--no-hvo" in caught.value.hint


def test_a_pool_without_hvo_is_made_unless_hvo_is_on_all_the_same(tmp_path: Path) -> None:
    record = elastic_record(Config(), state="creating")
    record.hvo = False
    kernel_bug.reject(record, root=host(tmp_path / "off", "6.12.117"))
    with pytest.raises(PoolError) as caught:
        kernel_bug.reject(record, root=host(tmp_path / "on", "6.12.117", hvo="1"))
    assert "hugetlb_optimize_vmemmap=0" in caught.value.hint


def test_other_kernels_fixed_pools_and_what_exists_are_left_alone(tmp_path: Path) -> None:
    record = elastic_record(Config(), state="creating")
    kernel_bug.reject(record, root=host(tmp_path / "good", "6.12.113"))
    bad = host(tmp_path / "bad", "6.12.114")
    record.state = "mounting"
    kernel_bug.reject(record, root=bad)
    record.state, record.elastic = "creating", None
    kernel_bug.reject(record, root=bad)
