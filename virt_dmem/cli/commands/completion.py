# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem completion``: made from the parser by shtab, with functions for names (``cli.completion_names``)."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.cli.completion_names import KINDS, function, functions, names
from virt_dmem.cli.daemon import socket_path
from virt_dmem.errors import ExitStatus, UsageError
from virt_dmem.ipc.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
For bash, write it to /usr/share/bash-completion/completions/virt-dmem, or load
it with 'eval "$(virt-dmem completion bash)"'; for zsh, write it to _virt-dmem
in a directory of $fpath. The package has done so."""


class CompletionAnswer:
    """`completion`."""

    shell: Annotated[str | None, says("bash or zsh; null: --names")]
    script: Annotated[str, says("the completion script, or the names in lines")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", nargs="?", choices=("bash", "zsh"))
    parser.add_argument(
        "--names", choices=KINDS, metavar="KIND", help="print only these names, for the scripts: pools or aliases"
    )
    parser.add_argument(
        "--domain", metavar="DOMAIN", default="", help="with --names aliases: of this domain's extents"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the completion script for a shell, or the names that such a script asks for."""
    if bool(args.names) == bool(args.shell):
        raise UsageError("Name a shell: bash or zsh.", hint="See 'virt-dmem completion --help'.")
    if args.names:
        with Client(socket_path(args)) as daemon:
            script = "\n".join(names(args.names, daemon, args.domain))
    else:
        script = _script(args.shell)
    out.text(script)
    out.result(shell=args.shell, script=script)
    return ExitStatus.DONE


def _script(shell: str) -> str:
    import shtab

    from virt_dmem import errors
    from virt_dmem.cli import registry
    from virt_dmem.cli.parser import build_parser
    from virt_dmem.monitoring.alert_codes import EXPLANATIONS

    parser = build_parser()
    _complete(parser)
    columns = {name: registry.load(name).columns for name in registry.MODULES}
    listed = {name: " ".join(table) for name, table in columns.items() if table}
    preamble: Any = functions([*errors.codes(), *EXPLANATIONS], listed)
    script: str = shtab.complete(parser, shell=shell, preamble=preamble)
    return script


def _complete(parser: argparse.ArgumentParser) -> None:
    """Tell shtab, for all actions of a parser and of those below it, what their words are."""
    import argparse
    from pathlib import Path

    import shtab

    command = parser.prog.partition(" ")[2]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete(child)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif called := _function(action, command):
            action.complete = {"bash": called, "zsh": called}  # type: ignore[attr-defined]


def _function(action: argparse.Action, command: str) -> str:
    """Return the function that completes an action's words; empty: none does."""
    metavar = str(action.metavar or "")
    if metavar in {"COLUMN", "COLUMNS"}:
        return function("columns", command)
    if metavar == "NAME" and command != "pool create":  # of a pool
        return function("pools")
    kinds = {"DOMAIN": "domains", "ALIAS": "aliases", "CODE": "codes", "SIZE": "sizes"}
    if metavar in kinds:
        return function(kinds[metavar])
    return "" if action.option_strings or action.choices else function("nothing")


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
