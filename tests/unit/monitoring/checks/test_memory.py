# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the host's memory, over a fake tree."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tests.rig.checked_machine import mounted, pool
from tests.rig.fake_tree import put
from virt_dmem.monitoring.checks import memory
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status


def test_no_pool_is_a_warning(machine: Machine) -> None:
    assert "virt-dmem pool create NAME" in memory.pools_mounted(machine).hint
    named = replace(machine, config=msgspec.structs.replace(machine.config, default_pool="guests"))
    assert "virt-dmem pool create guests --size" in memory.pools_mounted(named).hint


def test_a_pool_that_is_not_mounted_or_not_ready_is_a_fault(machine: Machine) -> None:
    record = pool(machine)
    assert memory.pools_mounted(machine).status is Status.FAIL
    assert "p is ready and has 0 B of 1 MiB" in memory.pools_mounted(machine).message
    mounted(machine, (record.mount, "tmpfs", "rw"))
    assert memory.pools_mounted(machine).status is Status.PASS
    pool(machine, "q", state="creating")
    assert "q is creating" in memory.pools_mounted(machine).message
    assert "'virt-dmem pool mount q'" in memory.pools_mounted(machine).hint


def test_a_pool_that_was_not_given_back_whole_is_to_be_destroyed_again(machine: Machine) -> None:
    pool(machine, "half", state="destroying")
    assert "'virt-dmem pool destroy half'" in memory.pools_mounted(machine).hint


def test_a_pool_must_not_be_the_first_hugetlbfs_mount_of_its_page_size(machine: Machine) -> None:
    ours = ("/run/virt-dmem/pools/p", "hugetlbfs", "rw,pagesize=2M")
    mounted(machine, ("/dev/hugepages1G", "hugetlbfs", "rw,pagesize=1024M"), ours)
    assert memory.first_hugetlbfs_mount(machine).status is Status.FAIL
    mounted(machine, ("/dev/hugepages", "hugetlbfs", "rw,pagesize=2M"), ours)
    assert memory.first_hugetlbfs_mount(machine).status is Status.PASS


def test_it_may_be_the_first_where_libvirt_is_told_which_to_use(machine: Machine) -> None:
    mounted(machine, ("/run/virt-dmem/pools/p", "hugetlbfs", "rw,pagesize=2M"))
    put(machine.root / "etc/libvirt/qemu.conf", '#hugetlbfs_mount = "/x"\n')
    assert memory.first_hugetlbfs_mount(machine).status is Status.FAIL
    put(machine.root / "etc/libvirt/qemu.conf", 'hugetlbfs_mount = ["/dev/hugepages2M"]\n')
    assert memory.first_hugetlbfs_mount(machine).status is Status.PASS
