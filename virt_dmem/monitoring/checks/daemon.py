# SPDX-License-Identifier: GPL-2.0-or-later
"""Check virt-dmemd: that it answers, its alerts, its group and its helper."""

from __future__ import annotations

import subprocess

from virt_dmem.config.schema import digest
from virt_dmem.errors import DaemonDenied, DaemonUnreachable, PermissionRefused
from virt_dmem.ipc.client import Client
from virt_dmem.monitoring import alert_codes
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.native.programs import HELPER
from virt_dmem.pools.backends.checks import Result, failed, passed, warned
from virt_dmem.text import counted

__all__ = ["daemon", "alerts", "group", "helper"]

_FOUND_BY = {
    alert_codes.HUGE_PAGES_LOWERED: "host-unchanged",
    alert_codes.HVO_SWITCHED: "host-unchanged",
    alert_codes.POOL_MOUNT_CHANGED: "host-unchanged",
    alert_codes.HOST_MEMORY_OFFLINE: "host-unchanged",
    alert_codes.INSTALLATION_CHANGED: "host-unchanged",
    alert_codes.LIBVIRT_SETTINGS_CHANGED: "host-unchanged",
    alert_codes.LIBVIRT_UNREACHABLE: "libvirt",
    alert_codes.REQUEST_LOST: "domains",
    alert_codes.REQUEST_UNFULFILLED: "domains",
}
"""The checks that find by themselves what an alert is about."""


def daemon(machine: Machine) -> Result:
    """Check that virt-dmemd answers, and runs with the configuration that its files have now."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            count = len(client.call("ListDomains")["domains"])
            in_force = client.call("ShowConfig")["digest"]
    except (PermissionRefused, DaemonDenied) as error:
        return warned(error.message, "Run the check as root, or as a member of the group.")
    if in_force != digest(machine.config):
        return warned(
            "virt-dmemd runs with another configuration: its files were changed since it was started.",
            "Restart it with 'systemctl restart virt-dmemd.service'; running guests are not affected.",
        )
    return passed(f"virt-dmemd answers; {counted(count, 'domain holds', 'domains hold')} memory.")


def alerts(machine: Machine) -> Result:
    """Check that virt-dmemd reports no alert."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            active = client.call("ListAlerts")["alerts"]
    except (DaemonUnreachable, PermissionRefused):
        return warned(
            "Which alerts are active is not known: only virt-dmemd has them.",
            "Fix the 'daemon' check first.",
            cause="daemon",
        )
    if active:
        message = " ".join(f"{alert['code']}: {alert['message']}" for alert in active)
        return warned(
            message,
            "'virt-dmem alerts' prints how to fix them.",
            cause=_cause({alert["code"] for alert in active}),
        )
    return passed("No alert is active.")


def _cause(codes: set[str]) -> str:
    """Return the check that finds by itself what all of these alerts are about; empty: none does."""
    found_by = {_FOUND_BY.get(code, "") for code in codes}
    return found_by.pop() if len(found_by) == 1 else ""


def group(machine: Machine) -> Result:
    """Check that the group of readers exists."""
    name = machine.config.daemon.group
    lines = machine.path("/etc/group").read_text("utf-8", "replace").splitlines()
    if any(line.startswith(f"{name}:") for line in lines):
        return passed(f"There is a group {name}.")
    return warned(f"There is no group {name}: only root can query virt-dmemd.", f"groupadd --system {name}")


def helper(machine: Machine) -> Result:
    """Check that the prefault helper can be executed."""
    program = machine.config.prefault.helper or HELPER
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return failed(
            f"The helper {program} cannot be executed: {error}.",
            "Reinstall virt-dmem; building it needs a C compiler.",
        )
    if done.returncode != 0:
        return failed(f"The helper {program} ended with status {done.returncode}.", "Reinstall virt-dmem.")
    return passed(f"{program} runs.")
