# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem events``: what happens, as it happens."""

from __future__ import annotations

import time

from virt_dmem.cli.arguments import positive
from virt_dmem.cli.command import Command
from virt_dmem.errors import DaemonUnreachable, ExitStatus
from virt_dmem.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Annotated, Any, Literal

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_POLL_SECONDS = 0.5
_ABOUT = """\
Prints a line for each event, until it is interrupted: the phases of a domain's
memory (reserved, prepared, linked, running, stopped, released), starts that were
rejected, memory devices, alerts that begin and end, and pools that change. With
--json each line is an object. It begins with what happens from now on. When
virt-dmemd is restarted the command waits for it, and notes that events may be
missing."""


class EventsAnswer:
    """`events`: one line for each event, not indented."""

    sequence: Annotated[int, says("larger than those before it")]
    at: Annotated[float, says("when it happened, in seconds since the epoch")]
    kind: Annotated[Literal["domain", "rejected", "device", "alert", "pool"], says("what it is about")]
    subject: Annotated[str, says("UUID of a domain, name of a pool, or what an alert is about; empty: not known")]
    name: Annotated[str, says("name of the domain; empty: it is about none, or not known")]
    state: Annotated[
        str,
        says(
            "of a domain its phase, or `released`; of a start that was rejected the hook operation; of a device"
            " `attached`, `detached`, `resized`, `pending` or `freed`; of an alert `began` or `ended`; of a pool"
            " its state, or `destroyed`"
        ),
    ]
    code: Annotated[str, says("of an alert or error; else empty")]
    message: Annotated[str, says("more about it; may be empty")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--count", type=positive, metavar="N", default=0, help="end after N events; default: never")
    parser.add_argument(
        "--timeout", type=parse_duration, metavar="TIME", help="end after this time, such as 30s; default: never"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print events as they happen."""
    ends = time.monotonic() + args.timeout if args.timeout else float("inf")
    for number, event in enumerate(_stream(args, out, ends), 1):
        what = event["name"] or event["subject"]
        code = f" [{event['code']}]" if event["code"] else ""
        said = f": {event['message']}" if event["message"] else ""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        out.text(f"{at}  {event['kind']:<8}  {what} {event['state']}{code}{said}")
        out.line(**event)
        out.flush()
        if number == args.count:
            break
    return ExitStatus.DONE


def _stream(args: argparse.Namespace, out: Output, ends: float) -> Iterator[dict[str, Any]]:
    """Yield events until the time ``ends``; wait for a virt-dmemd that went away.

    :raise DaemonUnreachable: When nobody answers at first.
    """
    from virt_dmem.cli.daemon import connect

    after, began = -1, False
    while time.monotonic() < ends:
        try:
            with connect(args) as daemon:
                while time.monotonic() < ends:
                    news = daemon.call("ListEvents", after=after)["news"]
                    if news["missed"]:
                        out.note("Some events are missing here: there were too many, or virt-dmemd was restarted.")
                    after, began = news["next"], True
                    yield from news["events"]
                    if not news["events"]:
                        time.sleep(_POLL_SECONDS)
        except DaemonUnreachable as error:
            if not began:
                raise
            out.note(f"{error.message} Waiting for it.")
            _wait(args, ends)


def _wait(args: argparse.Namespace, ends: float) -> None:
    """Wait until virt-dmemd listens."""
    from virt_dmem.cli.daemon import connect

    while time.monotonic() < ends:
        time.sleep(_POLL_SECONDS)
        try:
            connect(args).close()
        except DaemonUnreachable:
            continue
        return


COMMANDS = (
    Command(
        "events",
        "print what happens, as it happens",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="EventsAnswer",
    ),
)
