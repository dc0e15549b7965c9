# SPDX-License-Identifier: GPL-2.0-or-later
"""List the checks of ``virt-dmem check`` in their order, and run them.

Each looks at one thing and changes nothing. Files are read below ``Machine.root``, so that a directory can stand
for a machine; the daemon, libvirt and the helper are really called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from virt_dmem.errors import DmemError, HypervisorDenied, PermissionRefused
from virt_dmem.monitoring.checks import (
    adoption,
    architecture,
    confinement,
    daemon,
    elastic,
    hooks,
    host,
    libvirt,
    memory,
    module,
)
from virt_dmem.monitoring.checks.base import Check, Machine
from virt_dmem.os_errors import explained
from virt_dmem.pools.backends.checks import Result, failed, warned

__all__ = ["CHECKS", "run"]

CHECKS = (
    Check("architecture", architecture.architecture),
    *memory.backend_checks(),
    Check("dmemfs-module", module.module_built),
    Check("pools", memory.pools_mounted),
    Check("elastic-pools", elastic.elastic_pools),
    Check("host-unchanged", host.unchanged),
    Check("first-hugetlbfs-mount", memory.first_hugetlbfs_mount),
    Check("pool-roots", confinement.pool_roots),
    Check("daemon", daemon.daemon),
    Check("alerts", daemon.alerts),
    Check("group", daemon.group),
    Check("helper", daemon.helper),
    Check("libvirt", libvirt.connection),
    Check("domains", libvirt.domains),
    Check("adoption", adoption.rules),
    Check("hook", hooks.hook),
    Check("hook-client", hooks.hook_client),
    Check("hook-in-force", hooks.hook_in_force),
    Check("other-hooks", hooks.other_hooks),
    Check("memory-backing-dir", libvirt.memory_backing_dir),
    Check("apparmor", confinement.apparmor),
    Check("selinux", confinement.selinux),
)


def run(machine: Machine) -> Iterator[tuple[Check, Result]]:
    """Run all checks, one after another; one that cannot read something says so, and the others still run."""
    for check in CHECKS:
        try:
            result = check.run(machine)
        except OSError as error:
            hint = "Run the check as root." if os.geteuid() else "Find out why it cannot be read."
            failure = explained(error, otherwise=hint)
            result = warned(failure.message, failure.hint)
        except (PermissionRefused, HypervisorDenied) as error:  # it may well work for those who need it
            result = warned(error.message, error.hint)
        except DmemError as error:
            result = failed(error.message, error.hint)
        yield check, result
