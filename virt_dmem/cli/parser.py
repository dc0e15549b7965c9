# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the parser of the ``virt-dmem`` command line from what the commands declare."""

from __future__ import annotations

import argparse
from pathlib import Path

from virt_dmem.cli import registry
from virt_dmem.cli.columns import describe
from virt_dmem.errors import UsageError
from virt_dmem.version import ShowVersion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from virt_dmem.cli.command import Command

    Parsers = argparse._SubParsersAction["_Parser"]

__all__ = ["build_parser"]

_EXIT_STATUS = """\
exit status:
  0  success
  1  failure
  2  usage error
  3  a check failed
  4  virt-dmemd does not answer
  5  not enough memory
"""


class _Parser(argparse.ArgumentParser):
    """Report a usage error like every other failure, also as JSON."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"See '{self.prog} --help'.")


def build_parser(names: Iterable[str] = registry.MODULES) -> argparse.ArgumentParser:
    """Return the parser of the commands ``names``; without them, of the whole command line.

    Its result has the command as ``command``, and in a group the second word as ``verb``.
    """
    parser = _Parser(
        prog="virt-dmem",
        description="Run libvirt guests on memory pools that cost the host little or no struct page overhead.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_global_options()],
    )
    # the defaults of options that are taken before and after the verb: see _global_options
    parser.set_defaults(json=False, bytes=False, config=None, connect=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=_Parser)
    groups: dict[str, Parsers] = {}
    for name in names:
        group, _, verb = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = _add_group(commands, group)
        _add_command(groups.get(group, commands), verb, registry.load(name))
    return parser


def _global_options() -> _Parser:
    """Return options for every parser; their defaults are suppressed: a verb's parser must not unset them again."""
    parent = _Parser(add_help=False)
    group = parent.add_argument_group("global options")
    unset = argparse.SUPPRESS
    group.add_argument("--json", action="store_true", default=unset, help="print one JSON object, sizes in bytes")
    group.add_argument("--bytes", action="store_true", default=unset, help="print sizes in bytes")
    group.add_argument(
        "--connect", "-c", metavar="URI", default=unset, help="libvirt connection URI; default: the configured one"
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=unset,
        help="configuration file, with the conf.d beside it; default: /etc/virt-dmem/virt-dmem.toml",
    )
    group.add_argument("--version", action=ShowVersion)
    return parent


def _add_group(commands: Parsers, name: str) -> Parsers:
    """Add a word that has commands of its own, and return where they go."""
    summary = registry.GROUPS[name]
    parser = commands.add_parser(
        name, help=summary, description=_sentence(summary), allow_abbrev=False, parents=[_global_options()]
    )
    return parser.add_subparsers(metavar="VERB", required=True, dest="verb", parser_class=_Parser)


def _add_command(commands: Parsers, verb: str, command: Command) -> None:
    parser = commands.add_parser(
        verb,
        help=command.summary,
        description="\n\n".join(filter(None, (_sentence(command.summary), command.about))),
        epilog=describe(command.columns) if command.columns else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_global_options()],
    )
    if command.columns:
        parser.add_argument("--output", "-o", metavar="COLUMNS", help="columns to show, separated by commas")
    if command.arguments:
        command.arguments(parser)


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}."
