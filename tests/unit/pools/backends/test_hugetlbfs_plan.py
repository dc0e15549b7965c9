# SPDX-License-Identifier: GPL-2.0-or-later
"""How a host provides huge pages; tests/unit/pools/test_host_planning.py has whole plans."""

from __future__ import annotations

import pytest

from virt_dmem.pools.backends import hugetlbfs_plan
from virt_dmem.pools.backends.host_options import HostFacts
from virt_dmem.units import GIB, KIB, MIB


def facts(cma: int | None, nodes: int = 1) -> HostFacts:
    return HostFacts(dict.fromkeys(range(nodes), 400 * GIB), (2 * MIB, GIB), hvo=True, cma_bytes=cma)


@pytest.mark.parametrize(("page_size", "left"), [(2 * MIB, 4 * KIB), (64 * KIB, KIB), (GIB, 4 * KIB)])
def test_hvo_keeps_a_base_page_of_each_huge_page_at_most(page_size: int, left: int) -> None:
    assert hugetlbfs_plan.metadata_left(8 * page_size, page_size) == 8 * left


def test_pages_of_2_mib_need_nothing_at_boot() -> None:
    option = hugetlbfs_plan.option(320 * GIB, 2 * MIB, facts(None))
    assert option.kernel_command_line == "hugetlb_free_vmemmap=on"
    assert "--existing-pages" not in option.pool_create


def test_pages_of_1_gib_are_set_aside_at_boot_by_node() -> None:
    option = hugetlbfs_plan.option(320 * GIB, GIB, facts(None, nodes=2))
    assert option.kernel_command_line == "hugetlb_free_vmemmap=on hugepagesz=1G hugepages=0:160,1:160"
    assert option.pool_create.endswith("--page-size 1G --node 0=160G --node 1=160G --existing-pages")


def test_where_the_kernel_has_cma_both_ways_are_named() -> None:
    option = hugetlbfs_plan.option(320 * GIB, GIB, facts(0))
    assert option.kernel_command_line == "hugetlb_free_vmemmap=on hugetlb_cma=320G"
    notes = " ".join(option.notes)
    assert "hugepagesz=1G hugepages=320" in notes
    assert "--elastic --page-size 1G --max 320G" in notes
    of_two = hugetlbfs_plan.option(320 * GIB, GIB, facts(0, nodes=2))
    assert "hugetlb_cma=0:160G,1:160G" in of_two.kernel_command_line


@pytest.mark.parametrize(
    ("base_page", "of_allocator", "gigantic"),
    [
        (4 * KIB, (64 * KIB, 2 * MIB), (32 * MIB, GIB)),
        (16 * KIB, (2 * MIB, 32 * MIB), (GIB,)),
        (64 * KIB, (2 * MIB, 512 * MIB), (16 * GIB,)),
    ],
)
def test_on_arm64_pages_above_an_entry_of_a_pmd_are_set_aside_at_boot(
    base_page: int, of_allocator: tuple[int, ...], gigantic: tuple[int, ...]
) -> None:
    """The sizes are those that arch/arm64/mm/hugetlbpage.c registers for each base page."""
    host = HostFacts(
        {0: 400 * GIB}, (*of_allocator, *gigantic), None, None, architecture="aarch64", base_page=base_page
    )
    for page_size in (*of_allocator, *gigantic):
        option = hugetlbfs_plan.option(320 * GIB, page_size, host)
        assert ("--existing-pages" in option.pool_create) is (page_size in gigantic)
        assert "Linux has no HVO on arm64" in option.notes[0]
        assert (option.net_bytes, option.gross_bytes) == (0, 320 * GIB // base_page * 64)
    assert "hugepagesz=" in hugetlbfs_plan.option(320 * GIB, gigantic[0], host).kernel_command_line
