# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of permissions and security modules, over a fake tree."""

from __future__ import annotations

import os

import pytest

from tests.rig.checked_machine import pool
from tests.rig.fake_tree import put
from tests.rig.repository import REPOSITORY
from virt_dmem.monitoring.checks import confinement
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status


def test_a_directory_that_qemus_user_cannot_pass_is_named(machine: Machine) -> None:
    pool(machine, mount="/run/virt-dmem/pools/p")
    (machine.root / "run/virt-dmem/pools/p").mkdir(parents=True)
    for directory in ("run", "run/virt-dmem", "run/virt-dmem/pools", "run/virt-dmem/pools/p"):
        (machine.root / directory).chmod(0o711)
    machine.root.chmod(0o755)
    assert confinement.pool_roots(machine).status is Status.PASS
    (machine.root / "run/virt-dmem").chmod(0o750)
    assert confinement.pool_roots(machine).status is Status.FAIL
    assert confinement.pool_roots(machine).hint == "chmod o+x /run/virt-dmem"


def test_a_directory_of_the_group_of_qemus_user_is_passed(machine: Machine) -> None:
    status = os.stat_result((0o40710, 1, 1, 1, 0, 107, 0, 0, 0, 0))
    assert confinement._may_search(status, confinement._qemu_user(machine))
    put(machine.root / "etc/libvirt/qemu.conf", 'user = "root"\n')
    assert confinement._qemu_user(machine) == (0, 0)
    assert not confinement._may_search(status, None)


def test_apparmor_needs_our_rule_where_it_is_enabled(machine: Machine) -> None:
    assert confinement.apparmor(machine).status is Status.PASS
    put(machine.root / "sys/module/apparmor/parameters/enabled", "Y\n")
    assert confinement.apparmor(machine).status is Status.FAIL
    abstractions = machine.root / "etc/apparmor.d/abstractions"
    rules = (REPOSITORY / "packaging/apparmor.conf").read_text()
    put(abstractions / "libvirt-qemu.d/virt-dmem", rules)
    put(abstractions / "libvirt-qemu", "  include if exists <local/abstractions/libvirt-qemu>\n")
    assert confinement.apparmor(machine).status is Status.FAIL, "Debian 12 does not read libvirt-qemu.d"
    local = machine.root / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    put(local, "include if exists <abstractions/libvirt-qemu.d/virt-dmem>\n")
    assert confinement.apparmor(machine).status is Status.PASS
    local.unlink()
    put(abstractions / "libvirt-qemu", "  include if exists <abstractions/libvirt-qemu.d>\n")
    assert confinement.apparmor(machine).status is Status.PASS
    put(abstractions / "libvirt-qemu.d/virt-dmem", "/run/virt-dmem/pools/*/@{profile_name}/** rwk,\n")
    result = confinement.apparmor(machine)
    assert (result.status, "create the monitor" in result.message) == (Status.FAIL, True)
    assert "'/var/lib/libvirt/qemu/@{profile_name}.qmp rwk,'" in result.hint
    (abstractions / "libvirt-qemu.d/virt-dmem").unlink()
    assert confinement.apparmor(machine).status is Status.FAIL
    put(machine.root / "etc/libvirt/qemu.conf", 'security_driver = "none"\n')
    assert confinement.apparmor(machine).status is Status.PASS


def test_an_enforcing_selinux_is_a_fault_until_our_policy_is_loaded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is a stand-in."""
    assert confinement.selinux(machine).status is Status.PASS
    put(machine.root / "sys/fs/selinux/enforce", "1")
    failed = confinement.selinux(machine)
    assert failed.status is Status.FAIL
    assert "is labelled none: the policy module virt_dmem is not loaded" in failed.message
    monkeypatch.setattr(confinement, "label_of", lambda _: "system_u:object_r:virt_dmem_runtime_t:s0")
    assert confinement.selinux(machine).status is Status.PASS
    monkeypatch.undo()
    put(machine.root / "etc/libvirt/qemu.conf", 'security_driver = "none"\n')
    assert confinement.selinux(machine).status is Status.PASS
