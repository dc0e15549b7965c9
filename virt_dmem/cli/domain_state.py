# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell, by libvirt, why a domain holds no memory of a pool: shut off, not applied, or no such domain."""

from __future__ import annotations

from virt_dmem.cli import daemon
from virt_dmem.config.schema import load_config
from virt_dmem.errors import DmemError, DomainRefused, HypervisorError
from virt_dmem.hypervisor.connection import DomainInfo, Hypervisor
from virt_dmem.hypervisor.remedies import how_to_apply
from virt_dmem.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["holds_nothing", "why"]


def why(args: argparse.Namespace, refusal: DomainRefused) -> DmemError:
    """Return why a domain (``args.domain``) holds no memory, where that is why it was refused; else the refusal."""
    with daemon.connect(args) as answering:
        try:
            answering.call("ShowDomain", domain=args.domain)
        except DomainRefused:
            return holds_nothing(args, refusal)
    return refusal


def holds_nothing(args: argparse.Namespace, refusal: DomainRefused) -> DmemError:
    """Return the error for a domain (``args.domain``) of which virt-dmemd says that it holds nothing.

    :param refusal: What virt-dmemd says; stays where libvirt cannot be asked.
    :raise UsageError: When the name is ambiguous.
    """
    config = load_config(args.config)
    try:
        hypervisor = Hypervisor(args.connect or config.libvirt.uri, rules=config.adopt)
    except HypervisorError as error:
        hint = f"{refusal.hint} Whether there is such a domain is not known: {error.message}"
        return DomainRefused(refusal.message, hint=hint)
    with hypervisor:
        try:
            found = hypervisor.info(hypervisor.find(args.domain))
        except HypervisorError as error:
            return error
    return _of(found) if found else refusal


def _of(domain: DomainInfo) -> DomainRefused:
    applied = "'virt-dmem list --applied' lists the domains that are applied."
    if domain.refusal:
        return domain.refusal
    if domain.memory is None:
        asks = "asks for pool memory and is not rewritten" if domain.managed else "is not applied"
        state = "runs on ordinary memory" if domain.active else "is shut off"
        then = " It takes effect at the domain's next start." if domain.active else ""
        return DomainRefused(
            f"Domain {domain.name} {state}, and {asks}: its memory does not come from a pool.",
            hint=f"{how_to_apply(domain.uuid, domain.name)}{then}" if domain.persistent else applied,
        )
    if domain.active:
        return DomainRefused(
            f"Domain {domain.name} runs on ordinary memory: it is {_how(domain)}, and was not when it started.",
            hint="Shut it down and start it; if it was started since, run 'virt-dmem check'.",
        )
    where = f"pool {domain.memory.pool}" if domain.memory.pool else "the default pool"
    most = f", and up to {format_size(domain.memory.max_bytes)} later" if domain.memory.max_bytes else ""
    return DomainRefused(
        f"Domain {domain.name} is shut off and holds no memory; at its next start it takes"
        f" {format_size(domain.memory.total_bytes)} of {where}{most}.",
        hint=f"'virt-dmem rules {domain.uuid}' tells why it is adopted." if domain.adopted else applied,
    )


def _how(domain: DomainInfo) -> str:
    return f"adopted by rule {domain.memory.rule}" if domain.adopted and domain.memory else "applied"
