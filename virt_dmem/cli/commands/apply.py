# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite and restore the persistent XML of one domain through libvirt: ``virt-dmem apply`` and ``unapply``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from virt_dmem.cli.output import Output, masked, unified_diff
from virt_dmem.config.schema import Config, load_config
from virt_dmem.domain_xml import rewrite
from virt_dmem.domain_xml.reader import DomainMemory, read_domain
from virt_dmem.domains import apply as applying
from virt_dmem.domains.apply import ApplyOptions, XmlChange
from virt_dmem.errors import ExitStatus
from virt_dmem.hypervisor.connection import Hypervisor

__all__ = ["apply", "unapply"]


def apply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite a domain's persistent XML so that its memory comes from a pool."""
    config = load_config(args.config)
    options = ApplyOptions(args.pool, args.hotplug_max, args.no_monitor)
    return _change(args, out, config, lambda xml: applying.apply(config, xml, options))


def unapply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore a domain's original persistent XML; remove its request too, or virt-dmemd would apply it again."""
    config = load_config(args.config)
    return _change(args, out, config, lambda xml: rewrite.unapply(xml, keep_request=False))


def _change(
    args: argparse.Namespace, out: Output, config: Config, transform: Callable[[bytes], bytes]
) -> ExitStatus:
    with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
        uuid = hypervisor.find(args.domain)
        if args.dry_run:
            before = hypervisor.inactive_xml(uuid, secure=False)
            change = XmlChange(before, transform(before))
        else:
            change = XmlChange(*hypervisor.redefine(uuid, transform))
        active = hypervisor.is_active(uuid)
    _report(args, out, read_domain(change.after), change, active=active)
    return ExitStatus.DONE


def _report(
    args: argparse.Namespace, out: Output, domain: DomainMemory, change: XmlChange, *, active: bool
) -> None:
    difference = unified_diff(rewrite.reprint(change.before), change.after) if change.is_any else ""
    out.result(
        domain={"uuid": domain.uuid, "name": domain.name, "active": active, "applied": domain.applied},
        changed=change.is_any and not args.dry_run,
        diff=difference,
    )
    if args.print_diff and difference:
        out.text(difference)
    if args.print_xml:
        out.text(masked(change.after))
    if not change.is_any:
        out.note(f"The XML of {domain.name} needs no change.")
    elif args.dry_run:
        out.note(f"The XML of {domain.name} was not changed (--dry-run).")
    else:
        what = "is rewritten: its memory comes from a pool" if domain.applied else "is restored"
        when = "; this takes effect at its next start, as it is running now" if active else ""
        out.note(f"The XML of {domain.name} {what}{when}.")
        if change.adds_monitor:
            out.note("QEMU gets a second monitor, so libvirt will call the domain tainted (--no-monitor: without).")
