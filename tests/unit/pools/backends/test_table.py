# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of backends, and what each answers without a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_tree import GIB, MIB, fake_tree
from virt_dmem.errors import UsageError
from virt_dmem.pools.backends.table import BACKENDS, backend

KIB = 1024


def test_every_backend_is_found_by_its_name() -> None:
    assert set(BACKENDS) == {"hugetlbfs", "dmemfs", "tmpfs"}
    assert all(backend(name).name == name for name in BACKENDS)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'floppy'") as caught:
        backend("floppy")
    assert "hugetlbfs, dmemfs, tmpfs" in caught.value.hint


def test_page_sizes_are_those_of_the_host(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, page_sizes=(2 * MIB, GIB))
    assert backend("hugetlbfs").page_sizes(root=root) == (2 * MIB, GIB)
    assert backend("tmpfs").page_sizes(root=root) == (4 * KIB,)


def test_pages_of_2_mib_are_the_default_also_where_there_are_smaller_ones(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, page_sizes=(64 * KIB, 2 * MIB, 32 * MIB, GIB))
    assert backend("hugetlbfs").page_sizes(root=root) == (2 * MIB, 64 * KIB, 32 * MIB, GIB)
    assert backend("hugetlbfs").page_sizes(root=fake_tree(tmp_path / "none", page_sizes=(GIB,))) == (GIB,)


def test_this_machine_has_both() -> None:
    assert all(BACKENDS[name].probe().available for name in ("hugetlbfs", "tmpfs"))


@pytest.mark.parametrize(
    ("name", "page_size", "left"),
    [
        ("hugetlbfs", 2 * MIB, 640 * MIB),
        ("hugetlbfs", GIB, 1280 * KIB),
        ("dmemfs", 2 * MIB, 320 * (4096 + 128)),
        ("tmpfs", 4 * KIB, 5 * GIB),
    ],
)
def test_of_the_struct_pages_of_320_gib_each_backend_leaves_some(name: str, page_size: int, left: int) -> None:
    assert backend(name).metadata_left(320 * GIB, page_size) == left


def test_every_backend_allocates_zeroed_memory() -> None:
    assert all(kind.zeroes_on_allocation for kind in BACKENDS.values())
