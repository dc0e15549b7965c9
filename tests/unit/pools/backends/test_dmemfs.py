# SPDX-License-Identifier: GPL-2.0-or-later
"""Which memory a dmemfs pool gets, and what is refused on it, over trees of hosts; tests/lab has the real thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rig.dmemfs_segments import KIND, acquire, check, record
from tests.rig.fake_arm64 import ISLANDS, RUNTIME, fake_arm64, with_module
from tests.rig.fake_tree import GIB, MIB, NODES, PC, fake_memory_map, fake_tree, put
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError, PoolShort, UsageError
from virt_dmem.host.dmemfs_support import REFUSAL
from virt_dmem.host.ram.ranges import Range, common
from virt_dmem.pools import manage
from virt_dmem.pools.backends.base import Backend, Job
from virt_dmem.pools.backends.checks import Status
from virt_dmem.pools.backends.dmemfs import _explained, _regions_by_node
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.pools.host_planning import plan_host, read_host

RESERVED = [(7 * GIB, 2 * GIB), (15 * GIB, 2 * GIB)]
CMDLINE = "memmap=2G$7G memmap=2G$15G"
ALL = {0: [Range(7 * GIB, 2 * GIB)], 1: [Range(15 * GIB, 2 * GIB)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with two nodes that was booted with 2 GiB of each kept from the kernel."""
    fake_tree(tmp_path, memory=(6 * GIB, 6 * GIB), struct_pages=(0, 12 * GIB // 64 // 4096))
    put(tmp_path / "lib/modules/6.12.0-test/modules.dep", "updates/dkms/dmemfs.ko.xz:\n")
    return fake_memory_map(tmp_path, ram=PC, nodes=NODES, reserved=RESERVED, cmdline=CMDLINE)


def test_a_pool_gets_what_was_reserved_on_each_node(root: Path) -> None:
    found = acquire(root, record({0: 2 * GIB, 1: GIB}))
    assert found.regions == {0: ALL[0], 1: [Range(16 * GIB, GIB)]}
    assert [share.got_bytes for share in found.nodes.values()] == [2 * GIB, GIB]


def test_the_saving_is_all_struct_pages_and_measured_by_the_kernels_count(root: Path) -> None:
    found = acquire(root, record({0: GIB}))
    assert (found.saved_bytes, found.measured) == (16 * MIB - 4096 - 128, True)
    put(root / "proc/vmstat", f"nr_memmap_pages 0\nnr_memmap_boot_pages {16 * GIB // 64 // 4096}\n")
    assert not acquire(root, record({0: GIB})).measured
    put(root / "proc/vmstat", "nr_free_pages 1\n")
    assert not acquire(root, record({0: GIB})).measured


def test_two_pools_never_have_the_same_memory(root: Path) -> None:
    first = acquire(root, record({0: GIB, 1: GIB}))
    second = acquire(root, record({0: GIB}, name="q"), first)
    assert second.regions == {0: [Range(7 * GIB, GIB)]}
    assert first.regions[0] == [Range(8 * GIB, GIB)]
    with pytest.raises(PoolShort, match="1 GiB of node 0, but only 0 B of node 0"):
        acquire(root, record({0: GIB}, name="r"), first, second)


def test_after_a_reboot_a_pool_has_the_same_memory_again(root: Path) -> None:
    before = record({0: GIB}, regions={0: [Range(7 * GIB + 512 * MIB, GIB)]})
    assert acquire(root, before).regions == {0: [Range(7 * GIB + 512 * MIB, GIB)]}


def test_booted_with_other_parameters_a_pool_takes_what_there_is(root: Path) -> None:
    elsewhere = record({0: GIB}, regions={0: [Range(5 * GIB, GIB)]})
    assert acquire(root, elsewhere).regions == {0: [Range(8 * GIB, GIB)]}
    named = record({0: GIB}, regions={0: [Range(5 * GIB, GIB)]}, regions_named=True)
    with pytest.raises(PoolShort, match=r"0x140000000\+0x40000000 of node 0") as caught:
        acquire(root, named)
    assert "memmap=1G$5G" in caught.value.hint


def test_what_is_reserved_for_another_reason_is_taken_only_by_its_name(tmp_path: Path) -> None:
    root = fake_memory_map(fake_tree(tmp_path), ram=PC, reserved=[(7 * GIB, GIB)])
    with pytest.raises(PoolShort, match="0 B of node 0"):
        acquire(root, record({0: GIB}))
    named = record({0: GIB}, regions={0: [Range(7 * GIB, GIB)]}, regions_named=True)
    assert acquire(root, named).got_bytes == GIB


def test_pages_of_1_gib_want_whole_aligned_ones(tmp_path: Path) -> None:
    root = fake_memory_map(
        fake_tree(tmp_path), ram=PC, reserved=[(7 * GIB + 512 * MIB, 2 * GIB)], cmdline="memmap=2G$7680M"
    )
    assert acquire(root, record({0: GIB}, GIB)).regions == {0: [Range(8 * GIB, GIB)]}
    with pytest.raises(PoolShort, match="2 GiB of node 0, but only 1 GiB of node 0, in whole pages of 1 GiB"):
        acquire(root, record({0: 2 * GIB}, GIB))


def test_a_smaller_pool_keeps_part_of_its_ranges(root: Path) -> None:
    found = acquire(root, record({0: 2 * GIB}))
    found.nodes[0].wanted_bytes = GIB
    job = Job(found, (), lambda: None, lambda *_: None, root)
    assert KIND.release(job, keep_wanted=True) == 0
    assert (found.regions, found.got_bytes, found.saved_bytes) == (
        {0: [Range(8 * GIB, GIB)]},
        GIB,
        16 * MIB - 4096 - 128,
    )


def test_without_a_size_a_pool_has_all_there_is(root: Path) -> None:
    assert KIND.default_sizes(2 * MIB, {}, (), root=root) == {0: 2 * GIB, 1: 2 * GIB}
    first = acquire(root, record({0: GIB}))
    assert KIND.default_sizes(2 * MIB, {}, (first,), root=root) == {0: GIB, 1: 2 * GIB}
    assert KIND.nodes(root=root) == ([0, 1], [0, 1])


def test_a_node_whose_memory_is_all_in_pools_is_one_of_them_still(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=(6 * GIB, 6 * GIB))
    fake_memory_map(root, ram=PC, nodes=NODES, reserved=RESERVED, claimed=RESERVED[:1], cmdline=CMDLINE)
    assert KIND.nodes(root=root) == ([0, 1], [0, 1])
    assert KIND.default_sizes(2 * MIB, {}, (), root=root) == {1: 2 * GIB}
    assert manage.shares_of(KIND, 2 * MIB, {0: GIB}, root) == {0: GIB}


@pytest.mark.parametrize(
    ("dmem", "sizes"),
    [("dmem=1G", {0: GIB, 1: GIB}), ("dmem=1G@7G", {0: GIB}), ("dmem=!6G", {0: 2 * GIB - 128 * MIB, 1: 2 * GIB})],
)
def test_the_originals_parameter_says_how_large_a_pool_is(root: Path, dmem: str, sizes: dict[int, int]) -> None:
    put(root / "proc/cmdline", f"{CMDLINE} {dmem}\n")
    assert KIND.default_sizes(2 * MIB, {}, (), root=root) == sizes
    assert acquire(root, record(sizes)).got_bytes == sum(sizes.values())


def test_the_originals_parameter_alone_reserves_nothing_and_that_is_reported(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=(8 * GIB, 8 * GIB))
    fake_memory_map(root, ram=PC, nodes=NODES, cmdline="dmem=2G")
    sizes = KIND.default_sizes(2 * MIB, {}, (), root=root)
    with pytest.raises(PoolShort, match="2 GiB of node 0, 2 GiB of node 1, but only 0 B of node 0") as caught:
        acquire(root, record(sizes))
    assert "This kernel does not know dmem=2G" in caught.value.hint
    assert "memmap=2G$7G memmap=2G$15G" in caught.value.hint
    assert "dmem=2G asks for 4 GiB, but 0 B were reserved" in check(root).message


def test_a_host_that_reserved_nothing_is_told_how(tmp_path: Path) -> None:
    root = fake_memory_map(fake_tree(tmp_path), ram=PC)
    with pytest.raises(PoolShort, match="none was reserved at boot") as caught:
        KIND.default_sizes(2 * MIB, {}, (), root=root)
    assert "plan-host" in caught.value.hint
    with pytest.raises(PoolShort, match="No node has memory"):
        manage.shares_of(KIND, 2 * MIB, GIB, root)


def test_named_ranges_are_sorted_by_node(root: Path) -> None:
    assert _regions_by_node([Range(8 * GIB, 2 * GIB)], root=root) == {
        0: [Range(8 * GIB, GIB)],
        1: [Range(9 * GIB, GIB)],
    }
    with pytest.raises(UsageError, match="on no node"):
        _regions_by_node([Range(17 * GIB, GIB)], root=root)


def test_what_is_mounted_is_what_was_chosen(root: Path) -> None:
    found = acquire(root, record({0: GIB, 1: GIB}))
    assert KIND.mount_options(found) == (
        "region=0x200000000+0x40000000:region=0x400000000+0x40000000,pagesize=2M,compat=hugetlbfs",
    )
    assert KIND.mount_options(record({0: GIB}, 4096, regions={0: [Range(GIB, GIB)]})) == (
        "region=0x40000000+0x40000000,pagesize=4K",
    )


def test_the_module_is_found_where_it_is_installed_or_loaded(root: Path) -> None:
    assert KIND.probe(root=root).available
    put(root / "lib/modules/6.12.0-test/modules.dep", "kernel/fs/xfs/xfs.ko.xz:\n")
    assert not KIND.probe(root=root).available
    assert "6.12.0-test" in KIND.probe(root=root).reason
    put(root / "proc/filesystems", "nodev\tproc\nnodev\tdmemfs\n")
    (root / "sys/fs/dmemfs").mkdir(parents=True)
    assert KIND.probe(root=root).available


def test_the_plan_has_this_hosts_addresses(root: Path) -> None:
    (option,) = [option for option in plan_host(4 * GIB, read_host(root=root)) if option.backend == "dmemfs"]
    assert option.kernel_command_line == "memmap=2G$7G memmap=2G$15G"
    assert (
        option.pool_create == "virt-dmem pool create NAME --backend dmemfs --page-size 2M --node 0=2G --node 1=2G"
    )
    (too_much,) = [option for option in plan_host(40 * GIB, read_host(root=root)) if option.backend == "dmemfs"]
    assert "$START0" in too_much.kernel_command_line


def test_a_kernel_that_would_map_by_4_kib_is_warned_of(root: Path) -> None:
    found = acquire(root, record({0: GIB}))
    assert check(root, found).status is Status.PASS
    put(root / "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    assert "by 4 KiB" in check(root, found).message
    put(root / "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    put(root / "proc/self/mountinfo", "30 1 0:50 / /none/p rw - dmemfs virt-dmem-p rw\n")
    put(root / "sys/fs/dmemfs/0:50/huge_entries", "1\n")
    assert check(root, found).status is Status.PASS
    put(root / "sys/fs/dmemfs/0:50/huge_entries", "0\n")
    assert "Linux 6.12.0-test maps" in check(root, found).message


def test_a_host_that_the_module_refuses_is_refused_before_with_its_reason(tmp_path: Path) -> None:
    root = with_module(fake_arm64(tmp_path, release="6.12.117+deb13-arm64"))
    probe = KIND.probe(root=root)
    assert not probe.available
    assert "not supported on this host: this kernel's KVM takes memory" in probe.reason
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    with pytest.raises(PoolError, match="cannot be created here: dmemfs is not supported on this host: this ker"):
        manage.create(config, "p", sizes=None, backend="dmemfs", root=root)


def test_what_the_module_says_of_a_mount_is_passed_on() -> None:
    pool, mount = record({0: GIB}), PoolError("mount failed.", hint="See dmesg.")
    cpu = _explained(pool, mount, [f"{REFUSAL}a CPU lacks it"])
    assert cpu.message == "Pool p cannot be mounted, as dmemfs is not supported on this host: a CPU lacks it."
    assert "FEAT_S2FWB" in cpu.hint
    said = 'dmemfs: region 0x1+0x2 is not all RAM in the firmware\'s map: 0x1+0x1 is "of EFI type 2"'
    assert said in _explained(pool, mount, ["other: x", said]).message
    assert _explained(pool, mount, ["other: x"]) is mount


def test_on_arm64_a_pool_gets_what_the_firmware_left_without_what_the_loader_did(tmp_path: Path) -> None:
    left = Range(78 * GIB, 4 * MIB)
    root = with_module(fake_arm64(tmp_path, mem=24 * GIB), [left])
    sizes = KIND.default_sizes(2 * MIB, {}, (), root=root)
    found = acquire(root, record(sizes))
    assert sizes.keys() == {1}
    assert found.got_bytes == sum(sizes.values()) > 7 * GIB
    assert common(found.regions[1], [left, *RUNTIME, *ISLANDS]) == ()


def test_only_it_cannot_be_pinned(root: Path) -> None:
    pinned: dict[str, Backend[Any]] = {name: kind for name, kind in BACKENDS.items() if kind.has_struct_pages}
    assert sorted(pinned) == ["hugetlbfs", "tmpfs"]
    assert [name for name, kind in BACKENDS.items() if kind.lockable] == ["hugetlbfs", "tmpfs"]
