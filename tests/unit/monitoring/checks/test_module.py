# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the dmemfs module, over a fake tree."""

from __future__ import annotations

import pytest

from tests.rig.checked_machine import pool
from tests.rig.fake_tree import put
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.module import module_built
from virt_dmem.pools.backends.checks import Status

BUILT = "updates/dkms/dmemfs.ko.xz:\n"


@pytest.fixture
def installed(machine: Machine) -> Machine:
    put(machine.root / "usr/src/virt-dmem-1.0/dkms.conf", "")
    return machine


def kernel(machine: Machine, name: str, modules: str, *, headers: bool = True) -> None:
    put(machine.root / f"lib/modules/{name}/modules.dep", f"kernel/fs/ext4/ext4.ko:\n{modules}")
    if headers:
        put(machine.root / f"lib/modules/{name}/build/Makefile", "")


def test_without_its_sources_no_module_is_expected(machine: Machine) -> None:
    kernel(machine, "6.1", "")
    assert module_built(machine).status is Status.PASS


def test_a_kernel_for_which_the_build_failed_is_named_with_the_log(installed: Machine) -> None:
    kernel(installed, "6.1", BUILT)
    assert module_built(installed).status is Status.PASS
    kernel(installed, "6.2", "")
    found = module_built(installed)
    assert found.status is Status.WARN
    assert "for kernel 6.2, whose headers are installed" in found.message
    assert "/var/lib/dkms/virt-dmem/1.0/build/make.log" in found.hint
    assert "/usr/lib/virt-dmem/module build 6.2" in found.hint
    put(installed.root / "var/log/virt-dmem-module.log", "")
    assert "/var/log/virt-dmem-module.log" in module_built(installed).hint


def test_a_kernel_without_headers_matters_where_a_pool_is_on_dmemfs(installed: Machine) -> None:
    kernel(installed, "6.1", "", headers=False)
    assert module_built(installed).status is Status.PASS
    pool(installed, backend="dmemfs")
    found = module_built(installed)
    assert found.status is Status.WARN
    assert "linux-headers-6.1" in found.hint
