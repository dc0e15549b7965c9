# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem config show``."""

from __future__ import annotations

import json

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]


class ConfigKey:
    """One key of the configuration."""

    key: Annotated[str, says("its name after that of its section, such as `daemon.run_dir`")]
    value: Annotated[Any, says("effective value")]
    default: Annotated[Any, says("value where no file sets it")]
    origin: Annotated[str | None, says("the file that sets it; null: the default")]


class ConfigShowAnswer:
    """`config show`."""

    keys: list[ConfigKey]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--origin", action="store_true", help="also print the file that sets each key, or 'default'"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print every key with its value as TOML, with ``--origin`` followed by the file that sets it."""
    from operator import attrgetter

    import msgspec

    from virt_dmem.config.schema import keys, load_config_and_origins

    config, origins = load_config_and_origins(args.config)
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "value": msgspec.to_builtins(attrgetter(key)(config)),
            "default": msgspec.to_builtins(default),
            "origin": origins.get(key),
        }
        for key, _, default in keys()
    ]
    for row in rows:
        line = f"{row['key']} = {_toml(row['value'])}"
        out.text(f"{line:<60}  # {row['origin'] or 'default'}" if args.origin else line)
    out.result(keys=rows)
    return ExitStatus.DONE


def _toml(value: object) -> str:
    """Return a value as TOML on one line: tables, which are rules, without their empty keys."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(one)}' for key, one in value.items() if one)}}}"
    return json.dumps(value, ensure_ascii=False)


COMMANDS = (
    Command(
        "config show",
        "print every configuration key with its value",
        run,
        about="The output is TOML that can be read again. virt-dmem.toml(5) describes the keys.",
        arguments=add_arguments,
        answer="ConfigShowAnswer",
    ),
)
