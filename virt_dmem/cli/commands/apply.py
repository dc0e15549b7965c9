# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem apply`` and ``unapply``: rewrite and restore the persistent XML of domains through libvirt."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_dry_run, add_hotplug_and_monitor
from virt_dmem.cli.command import Command
from virt_dmem.errors import DmemError, ExitStatus, HypervisorError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Annotated, Any

    from msgspec import UnsetType

    from virt_dmem.cli.json_schema import Error, Uuid, says
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config
    from virt_dmem.domains.apply import XmlChange
    from virt_dmem.hypervisor.connection import DomainInfo, Hypervisor

__all__ = ["COMMANDS"]

_ABOUT_APPLY = """\
It takes effect at the domain's next start. What is replaced is kept in the
domain's metadata. A domain that is already applied is left unchanged; without
options, so is one that a rule of [[adopt]] takes: its memory comes from a pool
with the XML that it has. The output of --print-xml is for reading: its passwords
are masked, so it must not be defined.

With --hotplug-max the domain gets memory slots, a maximum and, if it has none, a
guest NUMA cell, so that 'attach' can add memory while it runs.

QEMU gets a second monitor, which reports memory failures and the outcome of
unplugs to virt-dmemd; libvirt then marks the domain as tainted (custom-argv). To
do without, use --no-monitor, which is remembered until unapply, or set
[libvirt] monitor = false.

With --all or --matching each persistent domain is rewritten by itself: one that
is refused is reported, and the others are still done. The exit status is 1 if
any was refused."""
_ABOUT_UNAPPLY = """\
The domain then has the XML that it had before apply. Its request for pool memory
is removed as well, even if it was there before: otherwise virt-dmemd would apply
it again. With --all or --matching it restores those that are applied."""


class AppliedDomain:
    """The domain that was rewritten."""

    uuid: Uuid
    name: Annotated[str, says("its name")]
    active: Annotated[bool, says("it is running now: the change takes effect at its next start")]
    applied: Annotated[bool, says("its memory will come from a pool")]


class AppliedOne:
    """One of several domains, with --all or --matching."""

    domain: Annotated[AppliedDomain | None, says("null: it was refused")]
    name: Annotated[str, says("its name")]
    changed: Annotated[bool, says("libvirt has new XML; false with --dry-run")]
    diff: Annotated[str, says("the difference, passwords masked; empty: there is none")]
    error: Annotated[Error | None, says("why it was refused; null: it was not")]


class ApplyAnswer:
    """`apply` and `unapply`: of one domain, or, with --all or --matching, `domains`."""

    domain: AppliedDomain | UnsetType
    changed: Annotated[bool, says("libvirt has new XML; false with --dry-run")] | UnsetType
    diff: Annotated[str, says("the difference, passwords masked; empty: there is none")] | UnsetType
    domains: list[AppliedOne] | UnsetType


def add_apply_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``apply``."""
    _add_domains(parser)
    parser.add_argument(
        "--pool", metavar="NAME", default="", help="pool to use; default: as the XML requests, or the default pool"
    )
    add_hotplug_and_monitor(parser)
    _add_printing(parser)


def add_unapply_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``unapply``."""
    _add_domains(parser)
    _add_printing(parser)


def _add_domains(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", help="name, UUID or ID")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--all", action="store_true", help="instead: all persistent domains")
    several.add_argument(
        "--matching", metavar="PATTERN", help="instead: those whose name matches a shell pattern, such as 'web*'"
    )


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

    def transform(xml: bytes) -> bytes:
        if options == applying.ApplyOptions() and applying.adopted_by(config, xml):
            return xml
        return applying.apply(config, applying.recovered(config, xml), options)

    return _Change(args, out, config, transform).run()


def unapply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Restore a domain's original persistent XML; remove its request too, or virt-dmemd would apply it again."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.domain_xml import rewrite
    from virt_dmem.domains.apply import recovered

    config = load_config(args.config)
    return _Change(args, out, config, lambda xml: rewrite.unapply(recovered(config, xml), keep_request=False)).run()


class _Change:
    """Change the XML of one domain or several, and report it."""

    def __init__(
        self, args: argparse.Namespace, out: Output, config: Config, transform: Callable[[bytes], bytes]
    ) -> None:
        self._args = args
        self._out = out
        self._config = config
        self._transform = transform

    def run(self) -> ExitStatus:
        """Change the domains that the command line names.

        :raise UsageError: When it names none, or one and several.
        """
        from virt_dmem.hypervisor.connection import Hypervisor

        several = self._args.all or self._args.matching is not None
        if several == (self._args.domain is not None):
            raise UsageError(
                "Both one domain and several are named." if several else "No domain is named.",
                hint="Give DOMAIN, --matching PATTERN or --all.",
            )
        with Hypervisor(self._args.connect or self._config.libvirt.uri) as hypervisor:
            if not several:
                self._out.result(**self._one(hypervisor, hypervisor.find(self._args.domain)))
                return ExitStatus.DONE
            results = [self._try_one(hypervisor, domain) for domain in self._chosen(hypervisor)]
        self._summarize(results)
        self._out.result(domains=results)
        return ExitStatus.FAILED if any(one["error"] for one in results) else ExitStatus.DONE

    def _chosen(self, hypervisor: Hypervisor) -> list[DomainInfo]:
        """Return the persistent domains that --all or --matching name.

        :raise HypervisorError: When there is none.
        """
        from fnmatch import fnmatchcase

        pattern = self._args.matching
        named = [
            domain
            for domain in hypervisor.domains()
            if domain.persistent and (pattern is None or fnmatchcase(domain.name, pattern))
        ]
        if not named:
            which = "" if pattern is None else f" whose name matches {pattern!r}"
            raise HypervisorError(
                f"There is no persistent domain{which}.", hint="'virsh list --all --persistent' lists them."
            )
        if self._args.command == "unapply":  # one that was never applied has nothing to restore
            return [domain for domain in named if domain.managed]
        return named

    def _try_one(self, hypervisor: Hypervisor, domain: DomainInfo) -> dict[str, Any]:
        """Change one of several domains; a refusal is a part of the result."""
        try:
            return {"name": domain.name, "error": None, **self._one(hypervisor, domain.uuid)}
        except DmemError as refusal:
            self._out.note(f"{domain.name}: {refusal.message} {refusal.hint}")
            error = {"code": refusal.code, "message": refusal.message, "hint": refusal.hint}
            return {"domain": None, "name": domain.name, "changed": False, "diff": "", "error": error}

    def _one(self, hypervisor: Hypervisor, uuid: str) -> dict[str, Any]:
        from contextlib import suppress

        from virt_dmem.domain_xml.reader import name_of, read_domain
        from virt_dmem.domains import apply as applying
        from virt_dmem.errors import DomainRefused, PoolNotFound

        if self._args.dry_run:
            before = hypervisor.inactive_xml(uuid, secure=False)
            change = applying.XmlChange(before, self._transform(before))
        else:
            change = applying.XmlChange(*hypervisor.redefine(uuid, self._transform))
        active = hypervisor.is_active(uuid)
        applied = False
        with suppress(DomainRefused):  # unapplied, it may be one that pools cannot serve
            applied = read_domain(change.after).applied
        name, rule = name_of(change.after), applying.adopted_by(self._config, change.after)
        domain = {"uuid": uuid, "name": name, "active": active, "applied": applied or bool(rule)}
        difference = self._report(domain, change, rule=rule)
        if applied:
            for of in (applying.doubt, applying.never_fits):
                with suppress(PoolNotFound):  # destroyed since: the XML is changed all the same
                    if note := of(self._config, change.after):
                        self._out.note(note)
        return {"domain": domain, "changed": change.is_any and not self._args.dry_run, "diff": difference}

    def _report(self, domain: dict[str, Any], change: XmlChange, *, rule: str) -> str:
        """Tell what was done to one domain, which a rule may adopt; return the difference."""
        from virt_dmem.cli.output import masked, unified_diff
        from virt_dmem.domain_xml import rewrite

        difference = unified_diff(rewrite.reprint(change.before), change.after) if change.is_any else ""
        if self._args.print_diff and difference:
            self._out.text(difference)
        if self._args.print_xml:
            self._out.text(masked(change.after))
        name = domain["name"]
        if not change.is_any:
            was = "is applied already" if domain["applied"] else "is not applied: there is nothing to restore"
            was = f"is taken by rule {rule}: its memory comes from a pool as it is" if rule else was
            self._out.note(f"{name} {was}. Its XML needs no change.")
        elif self._args.dry_run:
            word = "rewritten" if self._args.command == "apply" else "restored"
            self._out.note(f"The XML of {name} would be {word}; it was not changed (--dry-run).")
        else:
            what = "is rewritten: its memory comes from a pool" if domain["applied"] else "is restored"
            what = f"is restored, and taken by rule {rule}: its memory comes from a pool" if rule else what
            when = "; this takes effect at its next start, as it is running now" if domain["active"] else ""
            self._out.note(f"The XML of {name} {what}{when}.")
            if change.adds_monitor:
                self._out.note(
                    f"QEMU gets a second monitor, so libvirt will mark {name} as tainted; --no-monitor avoids that."
                )
        return difference

    def _summarize(self, results: list[dict[str, Any]]) -> None:
        from virt_dmem.text import counted

        differ = sum(bool(one["diff"]) for one in results)
        refused = sum(bool(one["error"]) for one in results)
        word = "restored" if self._args.command == "unapply" else "rewritten"
        self._out.text(
            f"{counted(len(results), 'domain')}: {differ} {'would be ' if self._args.dry_run else ''}{word},"
            f" {len(results) - differ - refused} unchanged, {refused} refused."
        )


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
