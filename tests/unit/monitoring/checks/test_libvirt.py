# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of libvirt's domains and directories."""

from __future__ import annotations

from tests.rig.checked_machine import install_hook, mounted
from tests.rig.domain_documents import domain
from tests.rig.fake_tree import put
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.monitoring.checks import libvirt
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status
from virt_dmem.pools.record import NodeShare, PoolRecord
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


def test_domains_that_cannot_use_the_memory_of_their_pool_are_found() -> None:
    record = PoolRecord("dm", "dmemfs", 2 * MIB, "/none/dm", {0: NodeShare(GIB)})
    other = PoolRecord("hp", "hugetlbfs", 2 * MIB, "/none/hp", {0: NodeShare(GIB)})
    disk = "<disk><driver name='qemu' cache='none'/><source file='/x'/><target dev='vda'/></disk>"
    memory = read_domain(domain(f"<devices>{disk}</devices>"))
    (refusal,) = libvirt._impossible([(memory, record), (memory, other), (read_domain(domain()), record)])
    assert "'vm' cannot work on pool 'dm'" in refusal.message
