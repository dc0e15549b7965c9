# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of libvirt: in its file, in force, and those that running domains began with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.checked_machine import BOOTED, bare_machine, libvirtd
from tests.rig.fake_tree import put
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.libvirt_settings import LibvirtSettings


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return bare_machine(tmp_path)


def qemu_conf(machine: Machine, text: str, at: float) -> None:
    path = machine.root / "etc/libvirt/qemu.conf"
    put(path, text)
    os.utime(path, (at, at))


def starts(machine: Machine, at: float, pid: int) -> None:
    libvirtd(machine, at, pid)
    put(machine.root / "run/libvirt/qemu/driver.pid", f"{pid}")


def messages(look: LibvirtSettings, machine: Machine, *, in_use: bool = False) -> list[str]:
    return [one.message for one in look(Sight(Config(), [], machine.root, in_use=in_use))]


def test_a_change_is_told_until_libvirtd_is_restarted_or_it_is_undone(machine: Machine) -> None:
    look = LibvirtSettings()
    assert messages(look, machine) == []  # no libvirtd
    qemu_conf(machine, 'user = "qemu"\n#memory_backing_dir = "/nowhere"\n', BOOTED + 10)
    starts(machine, BOOTED + 100, 4711)
    assert messages(look, machine) == []
    qemu_conf(machine, 'user = "qemu"  # as it was\nmemory_backing_dir = "/guests"\n', BOOTED + 200)
    (message,) = messages(look, machine)
    assert 'still uses memory_backing_dir = its default instead of "/guests"' in message
    qemu_conf(machine, 'user = "qemu"\nmax_processes = 7\n', BOOTED + 300)
    assert messages(look, machine) == []
    qemu_conf(machine, 'user = "root"\n', BOOTED + 400)
    assert 'user = "qemu" instead of "root"' in messages(look, machine)[0]
    starts(machine, BOOTED + 500, 4712)
    assert messages(look, machine) == []


def test_a_file_that_was_changed_before_anybody_looked_is_told_of(machine: Machine) -> None:
    starts(machine, BOOTED + 100, 4711)
    qemu_conf(machine, "", BOOTED + 200)
    assert "was changed after libvirtd (4711) had started" in messages(LibvirtSettings(), machine)[0]


def test_domains_that_began_with_other_settings_are_told_of_until_they_end(machine: Machine) -> None:
    look = LibvirtSettings()
    qemu_conf(machine, "", BOOTED + 10)
    starts(machine, BOOTED + 100, 4711)
    assert messages(look, machine, in_use=True) == []
    qemu_conf(machine, 'memory_backing_dir = "/guests"\n', BOOTED + 200)
    starts(machine, BOOTED + 300, 4712)
    (message,) = messages(look, machine, in_use=True)
    assert "restarted with other settings" in message
    assert 'memory_backing_dir = its default instead of "/guests"' in message
    assert messages(look, machine, in_use=False) == []
    assert messages(look, machine, in_use=True) == []
