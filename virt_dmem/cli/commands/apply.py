# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem apply`` and ``unapply``: the persistent XML of one domain, straight through libvirt."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from virt_dmem.cli.output import Output, masked, unified_diff
from virt_dmem.config.schema import Config, load_config
from virt_dmem.domain_xml import rewrite
from virt_dmem.domain_xml.monitor import has_monitor
from virt_dmem.domain_xml.reader import DomainMemory, read_domain
from virt_dmem.errors import ExitStatus
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.pools import registry
from virt_dmem.pools.backends.table import backend

__all__ = ["apply", "unapply"]


def apply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite a domain's persistent XML so that its memory comes from a pool."""
    config = load_config(args.config)

    def transform(xml: bytes) -> bytes:
        pool = registry.choose(config, args.pool or read_domain(xml).pool)
        kind = backend(pool.backend)
        return rewrite.apply(
            xml,
            pool=args.pool,
            page_size=pool.page_size,
            may_lock=kind.lockable,
            may_pin=kind.has_struct_pages,
            hotplug_max=args.hotplug_max,
            monitor=False if args.no_monitor else config.libvirt.monitor or None,
            templates_dir=Path(config.templates_dir),
        )

    return _change(args, out, config, transform)


def unapply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Give a domain its own persistent XML back; its request goes too, else virt-dmemd would apply it again."""
    config = load_config(args.config)
    return _change(args, out, config, lambda xml: rewrite.unapply(xml, keep_request=False))


def _change(
    args: argparse.Namespace, out: Output, config: Config, transform: Callable[[bytes], bytes]
) -> ExitStatus:
    with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
        uuid = hypervisor.find(args.domain)
        if args.dry_run:
            before = hypervisor.inactive_xml(uuid, secure=False)
            after = transform(before)
        else:
            before, after = hypervisor.redefine(uuid, transform)
        active = hypervisor.is_active(uuid)
    _report(args, out, read_domain(after), before, after, active=active)
    return ExitStatus.DONE


def _report(
    args: argparse.Namespace, out: Output, domain: DomainMemory, before: bytes, after: bytes, *, active: bool
) -> None:
    changed = before != after
    difference = unified_diff(rewrite.reprint(before), after) if changed else ""
    out.result(
        domain={"uuid": domain.uuid, "name": domain.name, "active": active, "applied": domain.applied},
        changed=changed and not args.dry_run,
        diff=difference,
    )
    if args.print_diff and difference:
        out.text(difference)
    if args.print_xml:
        out.text(masked(after))
    if not changed:
        out.note(f"The XML of {domain.name} is as it should be already.")
    elif args.dry_run:
        out.note(f"The XML of {domain.name} was not changed (--dry-run).")
    else:
        what = "is rewritten: its memory comes from a pool" if domain.applied else "is its own again"
        when = ", from its next start on; it runs now" if active else ""
        out.note(f"The XML of {domain.name} {what}{when}.")
        if has_monitor(after) and not has_monitor(before):
            out.note("QEMU gets a second monitor, so libvirt will call the domain tainted (--no-monitor: without).")
