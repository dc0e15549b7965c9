# SPDX-License-Identifier: GPL-2.0-or-later
"""What an architecture and its kernel can save, over fake trees."""

from __future__ import annotations

from tests.rig.checked_machine import pool
from tests.rig.fake_arm64 import fake_arm64
from tests.rig.fake_tree import put
from virt_dmem.host.dmemfs_support import REFUSAL
from virt_dmem.monitoring.checks.architecture import architecture
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status


def test_a_kernel_that_dmemfs_refuses_fails_where_a_pool_needs_it(machine: Machine) -> None:
    fake_arm64(machine.root, release="6.12.117+deb13-arm64")
    found = architecture(machine)
    assert found.status is Status.WARN
    assert "aarch64, Linux 6.12.117+deb13-arm64, pages of 4 KiB: huge pages save nothing, as" in found.message
    assert f"{REFUSAL}this kernel's KVM takes memory without struct pages for a device's" in found.message
    assert "Linux 7.3 or newer" in found.hint
    pool(machine, backend="dmemfs")
    assert architecture(machine).status is Status.FAIL


def test_what_the_module_said_of_the_cpu_is_repeated(machine: Machine) -> None:
    fake_arm64(machine.root)
    assert architecture(machine).status is Status.PASS
    assert architecture(machine).message.endswith("dmemfs is supported.")
    put(machine.root / "dev/kmsg", f"3,9,1,-;{REFUSAL}a CPU lacks it\n")
    assert architecture(machine).status is Status.WARN
    assert f"{REFUSAL}a CPU lacks it." in architecture(machine).message


def test_x86_has_both(machine: Machine) -> None:
    found = architecture(machine)
    assert found.status is Status.PASS
    assert found.message.endswith("huge pages save by HVO; dmemfs is supported.")


def test_other_architectures_have_no_dmemfs(machine: Machine) -> None:
    put(machine.root / "proc/sys/kernel/arch", "riscv64\n")
    assert "dmemfs is for x86-64 and arm64" in architecture(machine).message
