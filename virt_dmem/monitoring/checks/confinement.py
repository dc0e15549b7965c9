# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that permissions and security modules let QEMU use the pools."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.host.confinement import apparmor as apparmor_rules
from virt_dmem.host.confinement.selinux import label_of
from virt_dmem.monitoring.checks.base import Machine, text_of
from virt_dmem.pools.backends.checks import Result, failed, passed

__all__ = ["pool_roots", "apparmor", "selinux"]

QEMU_USERS = ("libvirt-qemu", "qemu")
"""QEMU's user where qemu.conf names none: of Debian's and Fedora's builds of libvirt."""


def pool_roots(machine: Machine) -> Result:
    """Check that QEMU's user can search every directory above each pool."""
    user = _qemu_user(machine)
    for pool in machine.records():
        for directory in reversed([Path(pool.mount), *Path(pool.mount).parents]):
            path = machine.path(directory)
            if path.exists() and not _may_search(path.stat(), user):
                return failed(
                    f"{directory} has mode {stat.S_IMODE(path.stat().st_mode):04o}: QEMU's user cannot reach"
                    f" pool {pool.name}.",
                    f"chmod o+x {directory}",
                )
    return passed("QEMU's user can reach every pool.")


def apparmor(machine: Machine) -> Result:
    """Check that AppArmor lets each QEMU access its own memory, and create its monitor."""
    if not apparmor_rules.enabled(root=machine.root):
        return passed("AppArmor is not enabled.")
    if machine.setting("security_driver") == "none":
        return passed("libvirt uses no security driver.")
    pools_dir, monitors_dir = machine.config.pools_dir, socket_of("").parent
    missing = {}
    if not apparmor_rules.lets_qemu_in(pools_dir, root=machine.root):
        missing[apparmor_rules.rule(pools_dir)] = f"access {pools_dir}"
    if machine.config.libvirt.monitor and not apparmor_rules.lets_qemu_listen(monitors_dir, root=machine.root):
        missing[apparmor_rules.monitor_rule(monitors_dir)] = "create the monitor that 'apply' adds"
    if not missing:
        return passed("AppArmor has virt-dmem's rules.")
    rules = apparmor_rules.RULES
    wanted = " and ".join(f"'{rule} rwk,'" for rule in missing)
    return failed(
        f"AppArmor is enabled, and no rule lets QEMU {' or '.join(missing.values())}.",
        f"Reinstall virt-dmem, or add {wanted} to"
        f" {rules}/abstractions/libvirt-qemu.d/virt-dmem (Debian 12: {rules}/local/abstractions/libvirt-qemu).",
    )


def selinux(machine: Machine) -> Result:
    """Check that virt-dmem's policy is loaded where SELinux is enforcing: its directory has a label of ours."""
    if text_of(machine.path("/sys/fs/selinux/enforce")).strip() != "1":
        return passed("SELinux is not enforcing.")
    if machine.setting("security_driver") == "none":
        return passed("libvirt uses no security driver.")
    directory = machine.config.daemon.run_dir
    label = label_of(machine.path(directory)) or "none"
    if ":virt_dmem_" in label:
        return passed(f"SELinux is enforcing, and {directory} is labelled {label}.")
    return failed(
        f"SELinux is enforcing, and {directory} is labelled {label}: the policy module virt_dmem is not loaded, and"
        " QEMU may not open its memory.",
        "Install virt-dmem-selinux, or load the module virt_dmem by semodule(8), and run restorecon -R on it.",
    )


def _qemu_user(machine: Machine) -> tuple[int, int] | None:
    """Return QEMU's user and group by number, ``None`` where they are not known."""
    configured = machine.setting("user")
    names = (configured,) if configured else QEMU_USERS
    for line in text_of(machine.path("/etc/passwd")).splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[0] in names:
            return int(fields[2]), int(fields[3])
    return None


def _may_search(status: os.stat_result, user: tuple[int, int] | None) -> bool:
    if user and status.st_uid == user[0]:
        return bool(status.st_mode & stat.S_IXUSR)
    if user and status.st_gid == user[1]:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
