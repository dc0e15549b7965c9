# SPDX-License-Identifier: GPL-2.0-or-later
"""How a host is booted for dmemfs: x86 by ranges, arm64 by what its kernel keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_arm64 import RUNTIME, TWO_NODES, fake_arm64, with_module
from tests.rig.fake_tree import GIB, MIB, put
from virt_dmem.host.ram import boot_reservation, memory_map
from virt_dmem.host.ram.boot_reservation import ISLANDS
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range, total
from virt_dmem.pools.backends import dmemfs_plan
from virt_dmem.pools.backends.host_options import HostFacts, HostOption
from virt_dmem.pools.host_planning import plan_host, read_host

ONE_NODE = {0: Range(GIB, 64 * GIB)}


def plan(root: Path, size: int) -> HostOption:
    (found,) = [option for option in plan_host(size, read_host(root=root)) if option.backend == "dmemfs"]
    return found


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """An arm64 host of 64 GiB, booted with all of it, that has the module."""
    return has_module(fake_arm64(tmp_path, nodes=ONE_NODE, runtime=()))


def has_module(root: Path) -> Path:
    release = (root / "proc/sys/kernel/osrelease").read_text().strip()
    put(root / f"lib/modules/{release}/modules.dep", "updates/dkms/dmemfs.ko:\n")
    return root


def test_what_mem_leaves_on_arm64_is_the_guests_even_with_the_kernel_among_it(tmp_path: Path) -> None:
    """The plan of a host booted with all its memory, then the same host booted as planned, with the islands."""
    before = plan(has_module(fake_arm64(tmp_path / "before")), 8 * GIB)
    mem = int(before.kernel_command_line.removeprefix("mem=").removesuffix("M")) * MIB
    after = with_module(fake_arm64(tmp_path / "after", mem=mem))
    has = memory_map.reserved(root=after)
    assert has.keys() == {1}
    assert 8 * GIB <= total(has[1]) < 8 * GIB + ISLANDS
    assert before.pool_create == "virt-dmem pool create NAME --backend dmemfs --page-size 2M"


def test_mem_counts_what_the_firmware_keeps(host: Path, tmp_path: Path) -> None:
    assert plan(host, 60 * GIB).kernel_command_line == f"mem={4 * 1024 - ISLANDS // MIB}M"
    low = fake_arm64(tmp_path / "low", nodes=ONE_NODE, runtime=(Range(GIB + 64 * MIB, 32 * MIB),))
    assert plan(low, 60 * GIB).kernel_command_line == f"mem={4 * 1024 - ISLANDS // MIB}M"


def test_on_arm64_nothing_is_said_of_memmap_or_kaslr(host: Path) -> None:
    option = plan(host, 48 * GIB)
    assert not {word for word in ("memmap", "KASLR", "$") if word in " ".join(option.notes)}
    assert "512 MiB more than the guests' are for them" in " ".join(option.notes)
    assert boot_reservation.is_complete(option.kernel_command_line)


def test_a_node_that_mem_would_empty_is_refused_with_what_is_possible(tmp_path: Path) -> None:
    option = plan(has_module(fake_arm64(tmp_path)), 20 * GIB)
    assert option.pool_create == ""
    assert "Node 1 would have no memory" in option.notes[-1]
    assert not boot_reservation.is_complete(option.kernel_command_line)
    most = total(TWO_NODES.values()) // 2 - RUNTIME[0].size - GIB - ISLANDS
    assert plan(tmp_path, most // SECTION * SECTION).pool_create


def test_more_than_the_host_can_spare_is_no_plan(host: Path) -> None:
    option = plan(host, 63 * GIB)
    assert option.kernel_command_line == "mem=SIZE"
    assert "besides what it needs itself" in " ".join(option.notes)
    put(host / "proc/iomem", "00000000-00000000 : System RAM\n")
    assert "root may be able to read them" in " ".join(plan(host, 48 * GIB).notes)


@pytest.mark.parametrize(
    ("release", "why"),
    [("6.12.117+deb13-arm64", "stop at their first instruction"), ("7.3.4+deb13-arm64", "has no module dmemfs")],
)
def test_where_dmemfs_cannot_be_had_the_plan_says_why(tmp_path: Path, release: str, why: str) -> None:
    root = fake_arm64(tmp_path, nodes=ONE_NODE, runtime=(), release=release)
    assert why in plan(root, 48 * GIB).notes[-1]
    assert plan(root, 48 * GIB).pool_create == ""
    (best,) = [option for option in plan_host(48 * GIB, read_host(root=root)) if option.recommended]
    assert (best.backend, best.page_size, best.net_bytes) == ("hugetlbfs", 2 * MIB, 0)
    assert why in best.reason


def test_where_it_can_be_had_it_is_recommended_as_arm64_has_no_hvo(host: Path) -> None:
    (best,) = [option for option in plan_host(48 * GIB, read_host(root=host)) if option.recommended]
    assert best.backend == "dmemfs"
    assert "Saves 767.8 MiB of 768 MiB, where huge pages save nothing: Linux has no HVO on arm64" in best.reason


def test_the_modules_tables_are_two_bits_a_page_and_a_page_table() -> None:
    assert dmemfs_plan.metadata_left(GIB, 2 * MIB) == 512 * 2 // 8 + 4096
    assert dmemfs_plan.metadata_left(GIB, 4096) == 65536 + 4096


def test_what_is_missing_is_reserved_by_the_parameter_of_the_architecture(host: Path, tmp_path: Path) -> None:
    assert "smaller mem=" in dmemfs_plan.boot_with([Range(GIB, GIB)], root=host)
    assert "plan-host" in dmemfs_plan.how_to_reserve(host)
    put(host / "proc/cmdline", "dmem=2G\n")
    assert "does not know dmem=2G" in dmemfs_plan.how_to_reserve(host)
    assert "memmap" not in dmemfs_plan.how_to_reserve(host)


@pytest.mark.parametrize("base_page", [4096, 16384, 65536])
def test_a_struct_page_is_64_bytes_whatever_the_page_size(base_page: int) -> None:
    facts = HostFacts(
        {0: 400 * GIB}, (2 * MIB, 32 * MIB, GIB), None, 0, architecture="aarch64", base_page=base_page
    )
    for option in plan_host(320 * GIB, facts):
        assert option.gross_bytes == option.size_bytes // base_page * 64
        assert option.net_bytes == 0 or option.backend == "dmemfs", "nothing else saves on arm64"
