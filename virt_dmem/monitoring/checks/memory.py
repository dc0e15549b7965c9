# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the host's memory: what each backend needs, and that pools are mounted as recorded."""

from __future__ import annotations

import re
from pathlib import Path

from virt_dmem.host import mounts
from virt_dmem.monitoring.checks.base import Check, Machine
from virt_dmem.pools import registry
from virt_dmem.pools.backends.checks import BackendCheck, Result, failed, passed, warned
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.text import counted
from virt_dmem.units import format_size

__all__ = ["backend_checks", "pools_mounted", "first_hugetlbfs_mount"]


def backend_checks() -> list[Check]:
    """Return the checks that the backends bring along."""
    return [_of_backend(name, check) for name, kind in BACKENDS.items() for check in kind.checks()]


def _of_backend(backend: str, check: BackendCheck) -> Check:
    def run(machine: Machine) -> Result:
        return check.run([record for record in machine.records() if record.backend == backend], machine.root)

    return Check(check.name, run)


def pools_mounted(machine: Machine) -> Result:
    """Check that every recorded pool is mounted and has its recorded size."""
    recorded, damaged = registry.readable(machine.own_config())
    for failure in damaged.values():
        return failed(failure.message, failure.hint)
    if not recorded:
        name = machine.config.default_pool or "NAME"
        return warned("There is no pool yet.", f"Create one: virt-dmem pool create {name} --size SIZE")
    wrong, commands = [], dict[str, None]()
    capacities = registry.capacities(recorded, root=machine.root)
    for pool, by_node in zip(recorded, capacities, strict=True):
        has = sum(by_node.values())
        if pool.shown_state != "ready" or has < pool.wanted_bytes:
            has_of = f"{format_size(has)} of {format_size(pool.wanted_bytes)}"
            wrong.append(f"{pool.name} is {pool.shown_state} and has {has_of}")
            verb = "destroy" if pool.state == "destroying" else "mount"
            commands[f"'virt-dmem pool {verb} {pool.pool}'"] = None
    if wrong:
        return failed(f"Pool {'; '.join(wrong)}.", f"Run {' and '.join(commands)}, which reports the cause.")
    return passed(
        f"{counted(len(recorded), 'segment is', 'segments are')} as recorded:"
        f" {', '.join(pool.name for pool in recorded)}."
    )


def first_hugetlbfs_mount(machine: Machine) -> Result:
    """Check that no pool is the mount that libvirt chooses for domains with <hugepages>."""
    if machine.setting("hugetlbfs_mount") is not None:
        return passed("qemu.conf names libvirt's hugetlbfs_mount.")
    seen: set[str] = set()
    for mount in mounts.mounts(root=machine.root):
        if mount.fstype != "hugetlbfs":
            continue
        found = re.search(r"pagesize=(\w+)", mount.options)
        page_size = found[1] if found else ""
        if page_size not in seen and Path(mount.path).parent == machine.config.pools_dir:
            return failed(
                f"{mount.path} is the first hugetlbfs mount of its page size: a libvirtd that starts now gives"
                " the pool's memory to domains with <hugepages>.",
                "Mount /dev/hugepages before the pools (systemd: dev-hugepages.mount), or set hugetlbfs_mount.",
            )
        seen.add(page_size)
    return passed("No pool is the first hugetlbfs mount of its page size.")
