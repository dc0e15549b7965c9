# SPDX-License-Identifier: GPL-2.0-or-later
"""Check libvirt: its connection, its domains and where it keeps memory files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virt_dmem.allocation.remembered import Remembered
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.requirements import require_possible
from virt_dmem.domain_xml.traces import Trace
from virt_dmem.domains.adoption import require_servable
from virt_dmem.domains.apply import Fitting, apply_if_requested, is_lost, request_lost
from virt_dmem.errors import DmemError
from virt_dmem.host import mounts
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.hypervisor.paths import DEFAULT_MEMORY_BACKING_DIR
from virt_dmem.hypervisor.remedies import how_to_apply
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.hooks import hook, hook_in_force
from virt_dmem.pools import registry
from virt_dmem.pools.backends.checks import Result, Status, failed, passed, warned
from virt_dmem.pools.backends.table import backend
from virt_dmem.text import counted

__all__ = ["connection", "domains", "memory_backing_dir"]

MEMORY_FSTYPES = ("tmpfs", "ramfs", "hugetlbfs")
_MOST_NAMED = 5
"""Domains that one message names."""


def connection(machine: Machine) -> Result:
    """Check that libvirt answers."""
    with Hypervisor(machine.uri):
        return passed(f"libvirt answers at {machine.uri}.")


def domains(machine: Machine) -> Result:
    """Check that each domain that asks for pool memory, or is adopted, will get it."""
    config = machine.own_config()
    remembered = Remembered(config.daemon.state_dir)
    refused: list[tuple[str, DmemError]] = []
    waiting, count, adopted = [], 0, 0
    with Hypervisor(machine.uri, rules=config.adopt) as hypervisor:
        for domain in hypervisor.domains():
            if domain.refusal:
                refused.append((domain.name, domain.refusal))
            if domain.adopted and domain.memory:
                adopted += 1
                try:
                    require_servable(config, domain.memory)
                    Fitting(config).require(domain.memory)
                except DmemError as refusal:
                    refused.append((domain.name, refusal))
                continue
            if domain.trace is not Trace.NONE and is_lost(domain.trace, remembered.find(domain.uuid)):
                refused.append((domain.name, request_lost(domain.uuid, domain.name, domain.trace)))
            if domain.unknown_request:
                refused.append((domain.name, domain.unknown_request))
            if not domain.managed:
                continue
            count += 1
            try:
                if not _is_fulfilled(config, hypervisor.definition(domain.uuid)):
                    waiting.append(domain)
            except DmemError as refusal:
                refused.append((domain.name, refusal))
    if refused:
        some = refused[:_MOST_NAMED]
        named = [
            refusal.message if name in refusal.message else f"{name}: {refusal.message}" for name, refusal in some
        ]
        return failed(" ".join([*named, *_more(refused)]), refused[0][1].hint)
    if waiting:
        names = ", ".join([*(domain.name for domain in waiting[:_MOST_NAMED]), *_more(waiting)])
        return warned(
            f"Of {counted(count, 'domain that asks', 'domains that ask')} for pool memory,"
            f" {counted(len(waiting), 'is', 'are')} not rewritten: {names}.",
            "virt-dmemd does that where auto_apply is set. Otherwise, for the first:"
            f" {how_to_apply(waiting[0].uuid, waiting[0].name)}",
        )
    ask = counted(count, "domain asks", "domains ask")
    if config.adopt:
        by_rule = counted(adopted, "domain is", "domains are")
        return passed(f"{ask} for pool memory, {by_rule} adopted by rules, and all can use it.")
    return passed(f"{ask} for pool memory, and can use it.")


def _is_fulfilled(config: Config, xml: bytes) -> bool:
    """Return whether a domain that asks for pool memory can be started on it, and not only after a rewrite.

    :raise DmemError: When it cannot have it, or not even from the whole pool.
    """
    memory = read_domain(xml)
    record = registry.choose(config, memory.pool)
    kind = backend(record.backend)
    require_possible(memory, record.pool, may_lock=kind.lockable, may_pin=kind.has_struct_pages)
    if apply_if_requested(config, xml) != xml and not memory.file_backed:
        return False
    Fitting(config).require(memory)
    return True


def _more(found: Sequence[object]) -> list[str]:
    return [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []


def memory_backing_dir(machine: Machine) -> Result:
    """Check that guest memory cannot end up in a file on a disk.

    Where a link is missing in ``memory_backing_dir``, QEMU creates the file itself. The hook rejects a start whose
    links are wrong, so this matters only where the hook does not run.
    """
    path = Path(machine.setting("memory_backing_dir") or DEFAULT_MEMORY_BACKING_DIR)
    above = [mount for mount in mounts.mounts(root=machine.root) if path.is_relative_to(mount.path)]
    fstype = max(above, key=lambda mount: len(mount.path)).fstype if above else "unknown"
    of_the_hook = {"hook": hook, "hook-in-force": hook_in_force}
    wrong = [name for name, check in of_the_hook.items() if check(machine).status is not Status.PASS]
    if fstype in MEMORY_FSTYPES or not wrong:
        return passed(f"memory_backing_dir {path} is on {fstype}; only links are created there.")
    return warned(
        f"memory_backing_dir {path} is on {fstype}, and the hook may not run: a rewritten domain that starts"
        " without it has its memory in a file there.",
        f"Fix the {wrong[0]!r} check first.",
        cause=wrong[0],
    )
