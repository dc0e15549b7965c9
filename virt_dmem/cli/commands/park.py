# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem park``, ``unpark`` and ``refresh``: guests whose memory outlives their QEMU.

virt-dmemd does the work. Interrupting the command interrupts nothing: ``virt-dmem list`` shows the outcome.
"""

from __future__ import annotations

from virt_dmem.cli.arguments import add_domain, add_dry_run
from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.confirm import add_yes, confirm
from virt_dmem.errors import DmemError, DomainRefused, ExitStatus, UsageError
from virt_dmem.text import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any, Literal

    from virt_dmem.cli.json_schema import Error, Uuid, says
    from virt_dmem.cli.output import Output
    from virt_dmem.ipc.client import Client

__all__ = ["COMMANDS"]

_ABOUT_PARK = """\
The guest is saved without its memory, which stays in the pool: it takes no
longer for a large guest than for a small one, and the state file has a few
hundred kilobytes. Until the domain is unparked it cannot be started anew, and
its memory is free for nobody. Interrupting the command changes nothing.
Requires root."""
_ABOUT_UNPARK = """\
The guest goes on where it was when it was parked; one that was paused is paused
again. Whatever fails before it goes on leaves it parked, to be tried again.
With --discard the guest is given up instead: its state file is removed, and its
memory is free; on a terminal it asks first. Requires root."""
_ABOUT_REFRESH = """\
The domain gets the QEMU that is installed now: it is parked and unparked at
once. Its memory is not copied; uptime and connections of the guest survive, it
only pauses. With --dry-run it says whether that is possible. A domain that
fails does not keep --all from the others. Requires root."""


class ParkedDomain:
    """What became of a domain."""

    uuid: Uuid
    name: Annotated[str, says("name of the domain")]
    state: Annotated[
        Literal["parked", "running", "paused", "discarded", "possible", "failed"],
        says("paused: as it was when it was parked; possible: with --dry-run; failed: of several"),
    ]
    state_file: Annotated[str, says("of a parked domain; else empty")]
    pause_seconds: Annotated[float, says("how long refreshing took; else 0")]
    error: Annotated[Error | None, says("why it failed; null: it did not")]


class ParkAnswer:
    """`park`, `unpark` and `refresh`."""

    domains: list[ParkedDomain]


def add_park_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``park``."""
    add_domain(parser)


def _add_domain_or_all(parser: argparse.ArgumentParser, all_help: str) -> None:
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", help="name or UUID")
    parser.add_argument("--all", action="store_true", help=all_help)


def add_unpark_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``unpark``."""
    _add_domain_or_all(parser, "all parked domains, one after another")
    parser.add_argument("--discard", action="store_true", help="give the guest up, and its memory back to the pool")
    add_yes(parser)


def add_refresh_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``refresh``."""
    _add_domain_or_all(parser, "all running domains with memory from a pool, one after another")
    add_dry_run(parser, "say whether it is possible, and change nothing")


def park(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Save a guest, and keep its memory in the pool."""
    return _each(args, out, "", "Park")


def unpark(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Let parked guests go on, or give one up."""
    if args.discard:
        if args.all:
            raise UsageError("--discard is for one domain.", hint="Name the domain.")
        confirm(args, f"Give up the saved guest of {args.domain}, and all of its memory?")
    return _each(args, out, "parked", "Unpark", discard=args.discard)


def refresh(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Give running guests the QEMU that is installed now."""
    return _each(args, out, "running", "Refresh", dry_run=args.dry_run)


def _each(args: argparse.Namespace, out: Output, phase: str, method: str, **parameters: object) -> ExitStatus:
    """Call a method for one domain, or for all that are in a phase; go on after a failure, and fail at the end."""
    from virt_dmem.cli.daemon import connect

    is_all = bool(phase) and args.all
    if is_all == bool(args.domain):
        raise UsageError("Give either DOMAIN or --all.", hint="'virt-dmem list' lists the domains.")
    with connect(args, root_for=f"'{args.command}'") as daemon:
        if not is_all:
            try:
                out.result(domains=[_one(daemon, out, method, domain=args.domain, **parameters)])
            except DomainRefused as refusal:
                from virt_dmem.cli.domain_state import why

                raise why(args, refusal) from refusal
            return ExitStatus.DONE
        rows = [row for row in daemon.call("ListDomains")["domains"] if row["phase"] == phase]
        results = [_try_one(daemon, out, method, row, **parameters) for row in rows]
    failed = sum(bool(one["error"]) for one in results)
    if failed:
        out.note(f"{failed} of {counted(len(results), 'domain')} failed.")
    elif not results:
        out.text(f"No domain is {phase}.")
    out.result(domains=results)
    return ExitStatus.FAILED if failed else ExitStatus.DONE


def _try_one(daemon: Client, out: Output, method: str, row: dict[str, Any], **parameters: object) -> dict[str, Any]:
    """Call a method for one of several domains; a failure is a part of the result."""
    try:
        return _one(daemon, out, method, domain=row["uuid"], **parameters)
    except DmemError as failure:
        out.note(f"{row['name']}: {failure.message} {failure.hint}")
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        what = {"state": "failed", "state_file": "", "pause_seconds": 0.0}
        return {"uuid": row["uuid"], "name": row["name"], **what, "error": error}


def _one(daemon: Client, out: Output, method: str, **parameters: object) -> dict[str, Any]:
    from virt_dmem.cli.terminal.progress import progress

    domain: dict[str, Any] = {}
    with progress(out) as show:
        for answer in daemon.call_more(method, **parameters):
            reply = answer["reply"]
            if reply["done"]:
                domain = reply["domain"]
            else:
                show(reply["message"], 0, 0)
    text = {"possible": "can be refreshed", "paused": "is paused, as it was", "discarded": "is given up"}
    what = text.get(domain["state"], f"is {domain['state']}")
    if domain["state_file"]:
        what += f"; its state is {domain['state_file']}"
    if domain["pause_seconds"]:
        what += f" after {domain['pause_seconds']:.1f} s"
    out.text(f"{domain['name']} {what}.")
    return {**domain, "error": None}


COMMANDS = (
    Command(
        "park",
        "save a guest and keep its memory in the pool",
        park,
        about=_ABOUT_PARK,
        arguments=add_park_arguments,
        answer="ParkAnswer",
    ),
    Command(
        "unpark",
        "let a parked guest go on, or give it up",
        unpark,
        about=_ABOUT_UNPARK,
        arguments=add_unpark_arguments,
        answer="ParkAnswer",
    ),
    Command(
        "refresh",
        "give a running guest the QEMU that is installed now",
        refresh,
        about=_ABOUT_REFRESH,
        arguments=add_refresh_arguments,
        answer="ParkAnswer",
    ),
)
