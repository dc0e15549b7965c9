# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem apply`` and ``unapply``: rewrite and restore the persistent XML of one domain through libvirt."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_domain, add_dry_run, add_hotplug_and_monitor
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Annotated, Any

    from virt_dmem.cli.json_schema import Uuid, says
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config
    from virt_dmem.domains.apply import XmlChange

__all__ = ["COMMANDS"]

_ABOUT_APPLY = """\
It takes effect at the domain's next start. What is replaced is kept in the
domain's metadata. A domain that is already applied is left unchanged. The output
of --print-xml is for reading: its passwords are masked, so it must not be
defined.

With --hotplug-max the domain gets memory slots, a maximum and, if it has none, a
guest NUMA cell, so that 'attach' can add memory while it runs.

QEMU gets a second monitor, which reports memory failures and the outcome of
unplugs to virt-dmemd; libvirt then calls the domain tainted (custom-argv). To do
without, use --no-monitor, which is remembered until unapply, or set
[libvirt] monitor = false."""
_ABOUT_UNAPPLY = """\
The domain then has the XML that it had before apply. Its request for pool memory
is removed as well, even if it was there before: otherwise virt-dmemd would apply
it again."""


class AppliedDomain:
    """The domain that was rewritten."""

    uuid: Uuid
    name: Annotated[str, says("its name")]
    active: Annotated[bool, says("it is running now: the change takes effect at its next start")]
    applied: Annotated[bool, says("its memory will come from a pool")]


class ApplyAnswer:
    """`apply` and `unapply`."""

    domain: AppliedDomain
    changed: Annotated[bool, says("libvirt has new XML; false with --dry-run")]
    diff: Annotated[str, says("the difference, passwords masked; empty: there is none")]


def add_apply_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``apply``."""
    add_domain(parser, "name, UUID or ID")
    parser.add_argument(
        "--pool", metavar="NAME", default="", help="pool to use; default: as the XML requests, or the default pool"
    )
    add_hotplug_and_monitor(parser)
    _add_printing(parser)


def add_unapply_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``unapply``."""
    add_domain(parser, "name, UUID or ID")
    _add_printing(parser)


def _add_printing(parser: argparse.ArgumentParser) -> None:
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--print-diff", action="store_true", help="print the difference (passwords masked)")
    shown.add_argument("--print-xml", action="store_true", help="print the new XML (passwords masked)")
    add_dry_run(parser, "change nothing")


def apply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite a domain's persistent XML so that its memory comes from a pool."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.domains import apply as applying

    config = load_config(args.config)
    options = applying.ApplyOptions(args.pool, args.hotplug_max, args.no_monitor)
    return _change(args, out, config, lambda xml: applying.apply(config, applying.recovered(config, xml), options))


def unapply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore a domain's original persistent XML; remove its request too, or virt-dmemd would apply it again."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.domain_xml import rewrite
    from virt_dmem.domains.apply import recovered

    config = load_config(args.config)
    return _change(args, out, config, lambda xml: rewrite.unapply(recovered(config, xml), keep_request=False))


def _change(
    args: argparse.Namespace, out: Output, config: Config, transform: Callable[[bytes], bytes]
) -> ExitStatus:
    from contextlib import suppress

    from virt_dmem.domain_xml.reader import name_of, read_domain
    from virt_dmem.domains import apply as applying
    from virt_dmem.errors import DomainRefused
    from virt_dmem.hypervisor.connection import Hypervisor

    with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
        uuid = hypervisor.find(args.domain)
        if args.dry_run:
            before = hypervisor.inactive_xml(uuid, secure=False)
            change = applying.XmlChange(before, transform(before))
        else:
            change = applying.XmlChange(*hypervisor.redefine(uuid, transform))
        active = hypervisor.is_active(uuid)
    applied = False
    with suppress(DomainRefused):  # unapplied, it may be one that pools cannot serve
        applied = read_domain(change.after).applied
    domain = {"uuid": uuid, "name": name_of(change.after), "active": active, "applied": applied}
    _report(args, out, domain, change)
    if applied and (doubt := applying.doubt(config, change.after)):
        out.note(doubt)
    return ExitStatus.DONE


def _report(args: argparse.Namespace, out: Output, domain: dict[str, Any], change: XmlChange) -> None:
    from virt_dmem.cli.output import masked, unified_diff
    from virt_dmem.domain_xml import rewrite

    difference = unified_diff(rewrite.reprint(change.before), change.after) if change.is_any else ""
    out.result(
        domain=domain,
        changed=change.is_any and not args.dry_run,
        diff=difference,
    )
    if args.print_diff and difference:
        out.text(difference)
    if args.print_xml:
        out.text(masked(change.after))
    name = domain["name"]
    if not change.is_any:
        out.note(f"The XML of {name} needs no change.")
    elif args.dry_run:
        out.note(f"The XML of {name} was not changed (--dry-run).")
    else:
        what = "is rewritten: its memory comes from a pool" if domain["applied"] else "is restored"
        when = "; this takes effect at its next start, as it is running now" if domain["active"] else ""
        out.note(f"The XML of {name} {what}{when}.")
        if change.adds_monitor:
            out.note("QEMU gets a second monitor, so libvirt will call the domain tainted (--no-monitor: without).")


COMMANDS = (
    Command(
        "apply",
        "rewrite a domain's persistent XML so that its memory comes from a pool",
        apply,
        about=_ABOUT_APPLY,
        arguments=add_apply_arguments,
        answer="ApplyAnswer",
    ),
    Command(
        "unapply",
        "restore a domain's original persistent XML",
        unapply,
        about=_ABOUT_UNAPPLY,
        arguments=add_unapply_arguments,
        answer="ApplyAnswer",
    ),
)
