# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem completion``: made from the parser by shtab."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
For bash, write it to /usr/share/bash-completion/completions/virt-dmem, or load
it with 'eval "$(virt-dmem completion bash)"'; for zsh, write it to _virt-dmem
in a directory of $fpath. The package has done so."""


class CompletionAnswer:
    """`completion`."""

    shell: Annotated[str, says("bash or zsh")]
    script: Annotated[str, says("the completion script")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the completion script for a shell."""
    import shtab

    from virt_dmem.cli.parser import build_parser

    parser = build_parser()
    _complete_file_names(parser)
    script = shtab.complete(parser, shell=args.shell)
    out.text(script)
    out.result(shell=args.shell, script=script)
    return ExitStatus.DONE


def _complete_file_names(parser: argparse.ArgumentParser) -> None:
    import argparse
    from pathlib import Path

    import shtab

    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_file_names(child)


COMMANDS = (
    Command(
        "completion",
        "print the completion script for a shell",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="CompletionAnswer",
    ),
)
