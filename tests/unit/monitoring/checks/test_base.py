# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify how checks look at a machine: this one, or the file system of another one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.rig.checked_machine import bare_machine, pool
from tests.rig.fake_tree import put
from virt_dmem.monitoring.checks.base import Machine

QEMU_CONF = """
#user = "commented"
  user = 'root'
username = "another"
memory_backing_dir="/mem/\xe9"
hugetlbfs_mount = [ "/first", "/second" ]
"""


def test_settings_of_qemu_conf_are_those_in_force(machine: Machine) -> None:
    assert machine.setting("user") is None, "there is no file"
    put(machine.root / "etc/libvirt/qemu.conf", "")
    assert machine.setting("user") is None
    (machine.root / "etc/libvirt/qemu.conf").write_bytes(QEMU_CONF.encode("latin-1"))
    assert machine.setting("user") == "root"
    assert machine.setting("memory_backing_dir") == "/mem/\N{REPLACEMENT CHARACTER}"
    assert machine.setting("hugetlbfs_mount") == "/first"
    assert machine.setting("group") is None


def test_the_records_are_those_of_the_machine_and_unreadable_ones_are_left_out(machine: Machine) -> None:
    assert machine.records() == []
    record = pool(machine)
    put(machine.root / "var/lib/virt-dmem/pools/q.json", "{")
    assert machine.records() == [record]
    assert machine.own_config().daemon.run_dir == machine.config.daemon.run_dir


def test_records_that_are_hidden_from_this_user_are_not_reported_as_none() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:  # pytest's own directory is hidden as a whole
        Path(directory).chmod(0o755)
        machine = bare_machine(Path(directory))
        pool(machine)
        hidden = machine.root / "var/lib/virt-dmem/pools"
        hidden.chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(PermissionError):
                machine.records()
        finally:
            os.seteuid(user)
            hidden.chmod(0o700)


def test_an_absolute_path_leads_below_the_root(tmp_path: Path, machine: Machine) -> None:
    assert machine.path("/etc/group") == machine.path(Path("/etc/group")) == machine.root / "etc/group"
