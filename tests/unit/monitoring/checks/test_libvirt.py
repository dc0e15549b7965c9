# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of libvirt's domains and directories."""

from __future__ import annotations

import pytest

from tests.rig.checked_machine import install_hook, mounted
from tests.rig.domain_documents import domain
from tests.rig.fake_tree import put
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.errors import DmemError, NotEnoughMemory
from virt_dmem.monitoring.checks import libvirt
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.record_files import write
from virt_dmem.units import GIB, MIB


def test_a_memory_backing_dir_on_a_disk_matters_while_the_hook_does_not_run(machine: Machine) -> None:
    assert libvirt.memory_backing_dir(machine).status is Status.WARN
    assert "/var/lib/libvirt/qemu/ram is on ext4" in libvirt.memory_backing_dir(machine).message
    mounted(machine, ("/", "ext4", "rw"), ("/mem", "tmpfs", "rw"), ("/var", "xfs", "rw"))
    assert "is on xfs" in libvirt.memory_backing_dir(machine).message
    put(machine.root / "etc/libvirt/qemu.conf", 'memory_backing_dir = "/mem/x"\n')
    assert libvirt.memory_backing_dir(machine).status is Status.PASS
    put(machine.root / "etc/libvirt/qemu.conf", "")
    install_hook(machine)
    assert libvirt.memory_backing_dir(machine).status is Status.PASS


DISK = "<devices><disk><driver name='qemu' cache='none'/><source file='/x'/><target dev='vda'/></disk></devices>"
BACKING = "<memoryBacking><source type='file'/><access mode='shared'/><allocation mode='ondemand'/></memoryBacking>"


def asks(pool: str, more: str = "") -> bytes:
    return domain(f"<metadata><d:memory xmlns:d='{NAMESPACE}' pool='{pool}'/></metadata>{more}")


def test_domains_that_cannot_use_the_memory_of_their_pool_are_found(machine: Machine) -> None:
    config = machine.own_config()
    config.pool_records_dir.mkdir(parents=True)
    for name, kind in (("dm", "dmemfs"), ("hp", "hugetlbfs")):
        write(config, PoolRecord(name, kind, 2 * MIB, f"/none/{name}", {0: NodeShare(GIB)}, state="ready"))
    for pool, more, complaint in [
        ("dm", DISK, "'vm' cannot work on pool 'dm'"),
        ("dm", BACKING + DISK, "'vm' cannot work on pool 'dm'"),
        ("none", "", "no pool 'none'"),
        ("", BACKING, "this host has 2"),
        ("../x", "", "not a valid name"),
    ]:
        with pytest.raises(DmemError, match=complaint):
            libvirt._is_fulfilled(config, asks(pool, more))
    assert not libvirt._is_fulfilled(config, asks("hp", DISK)), "it only can be"
    assert libvirt._is_fulfilled(config, asks("hp", BACKING + DISK))
    for size, state, complaint in ((2 * MIB, "ready", "even if that is empty"), (GIB, "mounting", "is mounting")):
        record = PoolRecord("hp", "hugetlbfs", 2 * MIB, "/none/hp", {0: NodeShare(size)})
        record.state = state
        write(config, record)
        with pytest.raises(DmemError, match=complaint):
            libvirt._is_fulfilled(config, asks("hp", BACKING + DISK))


def test_a_domain_that_does_not_fit_its_pool_even_if_that_is_empty_is_found(machine: Machine) -> None:
    config = machine.own_config()
    config.pool_records_dir.mkdir(parents=True)
    write(config, PoolRecord("small", "hugetlbfs", 2 * MIB, "/none/small", {0: NodeShare(4 * MIB)}, state="ready"))
    with pytest.raises(NotEnoughMemory, match="pool small even if that is empty"):
        libvirt._is_fulfilled(config, asks("small", BACKING))
