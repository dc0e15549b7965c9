# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem completion``: what a shell has to know of our words, made from the parser by shtab."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from virt_dmem.cli.output import Output
from virt_dmem.cli.parser import build_parser
from virt_dmem.errors import ExitStatus

__all__ = ["completion"]


def completion(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print the completion for a shell."""
    parser = build_parser()
    _files_where_files_go(parser)
    script = shtab.complete(parser, shell=args.shell)
    out.text(script)
    out.result(shell=args.shell, script=script)
    return ExitStatus.DONE


def _files_where_files_go(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _files_where_files_go(child)
