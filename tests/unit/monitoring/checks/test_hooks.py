# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of libvirt's hook, over a fake tree."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.rig.checked_machine import HOOK, HOOKS, daemon_that_served_at, install_client, install_hook, libvirtd
from tests.rig.fake_tree import put
from virt_dmem.monitoring.checks import hooks
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status


def test_the_installed_hook_is_compared_with_ours(machine: Machine) -> None:
    assert hooks.hook(machine).status is Status.FAIL
    installed = install_hook(machine)
    assert hooks.hook(machine).status is Status.PASS
    installed.chmod(0o644)
    assert "not executable" in hooks.hook(machine).message
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert "differs" in hooks.hook(machine).message
    installed.unlink()
    installed.symlink_to(HOOK)
    assert "not a regular file" in hooks.hook(machine).message


def test_a_hook_that_was_copied_and_not_installed_is_a_fault(machine: Machine) -> None:
    install_hook(machine, text=HOOK.read_bytes())
    assert "differs" in hooks.hook(machine).message
    assert hooks.hook_client(machine).status is Status.FAIL


def test_what_the_hook_runs_is_compared_with_ours_and_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_hook(machine)
    assert "/usr/bin/virt-dmem-hook is missing" in hooks.hook_client(machine).message
    program = install_client(machine)
    assert hooks.hook_client(machine).status is Status.PASS
    program.chmod(0o644)
    result = hooks.hook_client(machine)
    assert "cannot be executed" in result.message
    assert "libjson-c5" in result.hint
    install_client(machine, Path("/bin/false"))
    assert "differs" in hooks.hook_client(machine).message
    monkeypatch.setattr(hooks, "HOOK_CLIENT", tmp_path / "not built")
    assert "cannot be executed" in hooks.hook_client(machine).message


def test_what_the_hook_runs_must_lie_where_apparmor_lets_libvirtd_run_it(machine: Machine) -> None:
    install_hook(machine, text=HOOK.read_bytes().replace(b"@PREFIX@", b"/opt/x"))
    assert hooks.hook(machine).status is Status.PASS
    (machine.root / "opt/x/bin").mkdir(parents=True)
    install_client(machine).rename(machine.root / "opt/x/bin/virt-dmem-hook")
    rules = machine.root / "etc/apparmor.d"
    put(rules / "usr.sbin.libvirtd", "  /usr/bin/* PUx,\n  /** rwmkl,\n  #include <local/usr.sbin.libvirtd>\n")
    assert hooks.hook_client(machine).status is Status.PASS, "AppArmor is not enabled"
    put(machine.root / "sys/module/apparmor/parameters/enabled", "Y\n")
    result = hooks.hook_client(machine)
    assert result.status is Status.FAIL
    rule = result.hint.split("'")[1]
    assert rule == "/opt/x/bin/virt-dmem-hook PUx,"
    put(rules / "local/usr.sbin.libvirtd", f"{rule}\n")
    assert hooks.hook_client(machine).status is Status.PASS


def test_a_libvirtd_older_than_its_first_hook_is_to_be_reloaded(machine: Machine) -> None:
    assert hooks.hook_in_force(machine).status is Status.WARN
    install_hook(machine)
    assert hooks.hook_in_force(machine).status is Status.PASS
    libvirtd(machine, time.time() - 3600)
    result = hooks.hook_in_force(machine)
    assert result.status is Status.WARN
    assert result.hint.startswith("systemctl reload libvirtd")
    libvirtd_again = time.time() + 10
    put(machine.root / "proc/stat", f"btime {int(libvirtd_again)}\n")
    assert hooks.hook_in_force(machine).status is Status.PASS


def test_a_libvirtd_that_was_reloaded_when_the_hook_was_installed_knows_of_it(machine: Machine) -> None:
    put(machine.root / "run/virt-dmem/libvirt-reloaded", "")
    libvirtd(machine, time.time() - 3600)
    hook = install_hook(machine)
    os.utime(machine.root / "run/virt-dmem/libvirt-reloaded", (0, hook.stat().st_ctime - 1))
    assert hooks.hook_in_force(machine).status is Status.WARN, "reloaded before that"
    os.utime(machine.root / "run/virt-dmem/libvirt-reloaded", (0, hook.stat().st_ctime + 1))
    assert hooks.hook_in_force(machine).status is Status.PASS


@pytest.mark.parametrize(("later", "status"), [(10, Status.PASS), (-10, Status.WARN)])
def test_a_libvirtd_that_systemd_reloaded_later_knows_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, later: int, status: Status
) -> None:
    hook = install_hook(machine)
    libvirtd(machine, time.time() - 3600)
    monkeypatch.setattr(hooks, "reloaded_at", lambda unit, _pid: hook.stat().st_ctime + later)
    assert hooks.hook_in_force(machine).status is status


@pytest.mark.parametrize(("ago", "status"), [(10, Status.PASS), (7200, Status.WARN)])
def test_a_hook_that_was_called_since_libvirtd_started_is_in_force(
    machine: Machine, ago: int, status: Status
) -> None:
    install_hook(machine)
    libvirtd(machine, time.time() - 3600)
    with daemon_that_served_at(time.time() - ago, machine.root / "run/virt-dmem/sock"):
        assert hooks.hook_in_force(machine).status is status


def test_a_copy_of_our_hook_is_a_fault_and_another_hook_a_warning(machine: Machine) -> None:
    install_hook(machine)
    install_hook(machine, "qemu", b"#!/bin/sh\n")
    put(machine.root / HOOKS / "qemu.d/README", "not executable\n")
    assert hooks.other_hooks(machine).status is Status.PASS
    install_hook(machine, "qemu.d/10-network", b"#!/bin/sh\n")
    assert hooks.other_hooks(machine).status is Status.WARN
    assert "10-network" in hooks.other_hooks(machine).message
    install_hook(machine, "qemu.d/50-virt-dmem.dpkg-old")
    assert hooks.other_hooks(machine).status is Status.FAIL
    assert "50-virt-dmem.dpkg-old" in hooks.other_hooks(machine).message
