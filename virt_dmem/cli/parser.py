# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the parser of the ``virt-dmem`` command line from what the commands declare."""

from __future__ import annotations

import argparse
from pathlib import Path

from virt_dmem.cli import registry
from virt_dmem.cli.columns import add_selection, describe
from virt_dmem.errors import UsageError
from virt_dmem.text import clipped, did_you_mean
from virt_dmem.version import ShowVersion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

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

    _given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        hint = f"See '{self.prog} --help'."
        if "are required" in message and (commands := self._commands()):
            raise UsageError("No command is given.", hint=f"It can be {', '.join(commands)}. {hint}")
        if "are required" in message:
            unknown = [word for word in self._given if word not in self._option_string_actions]
            hint = f"{self._how_to_name(unknown)}{hint}"
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=hint)

    def parse_known_args(  # type: ignore[override] # argparse's own has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does; reject here, where the command and its options are known, what it leaves over.

        :raise UsageError: When it leaves something.
        """
        self._given = args or ()
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            raise self._unrecognized(left)
        return parsed, left

    def _unrecognized(self, left: list[str]) -> UsageError:
        first = next((word for word in left if word.startswith("-")), left[0])
        option = first.partition("=")[0]
        if option in self._option_string_actions:  # behind '--' it is none
            hint = f"Options go before '--': {self.prog} {clipped(first, 80)} -- …. "
        else:
            hint = did_you_mean(option, self._option_string_actions) or self._how_to_name([first])
        return UsageError(
            f"Unrecognized arguments: {clipped(' '.join(left), 200)}.", hint=f"{hint}See '{self.prog} --help'."
        )

    def _how_to_name(self, words: list[str]) -> str:
        """Return how to give a name that begins with a hyphen, if one of the words may be meant as one.

        NAME is that of a pool, which never begins so.
        """
        behind = next((word for word in words if word.startswith("-") and word != "--"), "")
        if "--" in words or not behind:
            return ""
        if all(action.option_strings or action.metavar == "NAME" for action in self._actions):
            return ""
        return f"A name that begins with '-' goes behind '--': {self.prog} -- {clipped(behind, 80)}. "

    def _commands(self) -> list[str]:
        """Return the commands that may stand at this place; none at all where a command has its own arguments."""
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [command for group in groups for command in group.choices]

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 -- as argparse's own
        """Reject a word that is none of the choices.

        :raise UsageError: Names the nearest of them.
        """
        if action.choices is None or value in action.choices:
            return
        known, typed = [*map(str, action.choices)], clipped(str(value), 80)
        near = did_you_mean(typed, known)
        if isinstance(action, argparse._SubParsersAction):
            words = f"{self.prog} {typed}".removeprefix("virt-dmem ")
            raise UsageError(f"There is no command {words!r}.", hint=f"{near}See '{self.prog} --help'.")
        what = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
        raise UsageError(
            f"{what} cannot be {typed!r}: invalid choice.",
            hint=f"{near}It can be {', '.join(known)}. See '{self.prog} --help'.",
        )


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
        if command.selects:
            add_selection(parser)
    if command.arguments:
        command.arguments(parser)


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}."
