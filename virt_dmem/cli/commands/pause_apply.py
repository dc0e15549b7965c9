# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pause-apply``."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus
from virt_dmem.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
For the given time, or until --resume, which also applies domains defined
meanwhile. The pause survives restarts of virt-dmemd. The apply command is not
affected. Requires root."""


class PauseApplyAnswer:
    """`pause-apply`."""

    paused: Annotated[bool, says("automatic apply is paused now")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument(
        "--for", dest="seconds", type=parse_duration, default=0, metavar="TIME", help="such as 30m, 1h or 2d"
    )
    how_long.add_argument(
        "--resume", action="store_true", help="resume, and apply domains that were defined meanwhile"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Pause automatic apply in virt-dmemd, or resume it."""
    from virt_dmem.cli.daemon import connect

    with connect(args, root_for="Pausing automatic apply") as daemon:
        if args.resume:
            daemon.call("ResumeApply")
        else:
            daemon.call("PauseApply", seconds=args.seconds)
    out.text(f"Automatic apply {'resumed' if args.resume else 'paused'}.")
    out.result(paused=not args.resume)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "pause-apply",
        "pause automatic apply by virt-dmemd",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="PauseApplyAnswer",
    ),
)
