# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem explain``."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import Code, says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Every failure has such a code: it stands in brackets behind the message of a
command or of the hook, in the log of virt-dmemd, and in the output of --json."""


class ExplainAnswer:
    """`explain`."""

    code: Code
    explanation: Annotated[str, says("a few sentences")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument("code", metavar="CODE")


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the explanation of an error or alert code."""
    from virt_dmem import errors
    from virt_dmem.monitoring.alert_codes import EXPLANATIONS

    explanation = errors.explain(args.code, EXPLANATIONS)
    out.text(explanation)
    out.result(code=args.code, explanation=explanation)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "explain",
        "explain the code of an error or alert",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="ExplainAnswer",
    ),
)
