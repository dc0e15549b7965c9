# SPDX-License-Identifier: GPL-2.0-or-later
"""Check libvirt: its connection, its domains and where it keeps memory files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from virt_dmem.domain_xml.reader import DomainMemory, read_domain
from virt_dmem.domain_xml.requirements import require_possible
from virt_dmem.errors import DmemError, DomainRefused, PoolError
from virt_dmem.host import mounts
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.hypervisor.paths import DEFAULT_MEMORY_BACKING_DIR
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.hooks import hook, hook_in_force
from virt_dmem.pools import registry
from virt_dmem.pools.backends.checks import Result, Status, failed, passed, warned
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord

__all__ = ["connection", "domains", "memory_backing_dir"]

MEMORY_FSTYPES = ("tmpfs", "ramfs", "hugetlbfs")


def connection(machine: Machine) -> Result:
    """Check that libvirt answers."""
    with Hypervisor(machine.uri):
        return passed(f"libvirt answers at {machine.uri}.")


def domains(machine: Machine) -> Result:
    """Check that each domain that asks for pool memory can use that of its pool."""
    asking = []
    with Hypervisor(machine.uri) as hypervisor:
        for domain in hypervisor.domains():
            with suppress(PoolError, DomainRefused):  # its start is rejected, with the reason
                if domain.managed:
                    memory = read_domain(hypervisor.inactive_xml(domain.uuid, secure=False))
                    asking.append((memory, registry.choose(machine.own_config(), memory.pool)))
    found = _impossible(asking)
    if found:
        return failed(" ".join(refusal.message for refusal in found), found[0].hint)
    return passed(f"{len(asking)} domains ask for pool memory, and can use it.")


def _impossible(domains: Iterable[tuple[DomainMemory, PoolRecord]]) -> list[DomainRefused]:
    """Return why each domain that cannot use the memory of its pool cannot."""
    found = []
    for memory, record in domains:
        kind = backend(record.backend)
        try:
            require_possible(memory, record.pool, may_lock=kind.lockable, may_pin=kind.has_struct_pages)
        except DmemError as refusal:
            found.append(DomainRefused(refusal.message, hint=refusal.hint))
    return found


def memory_backing_dir(machine: Machine) -> Result:
    """Check that guest memory cannot end up in a file on a disk.

    Where a link is missing in ``memory_backing_dir``, QEMU creates the file itself. The hook rejects a start whose
    links are wrong, so this matters only where the hook does not run.
    """
    path = Path(machine.setting("memory_backing_dir") or DEFAULT_MEMORY_BACKING_DIR)
    above = [mount for mount in mounts.mounts(root=machine.root) if path.is_relative_to(mount.path)]
    fstype = max(above, key=lambda mount: len(mount.path)).fstype if above else "unknown"
    safe = all(check(machine).status is Status.PASS for check in (hook, hook_in_force))
    if fstype in MEMORY_FSTYPES or safe:
        return passed(f"memory_backing_dir {path} is on {fstype}; only links are created there.")
    return warned(
        f"memory_backing_dir {path} is on {fstype}, and the hook may not run: a rewritten domain that starts"
        " without it has its memory in a file there.",
        "Fix the checks of the hook first.",
    )
