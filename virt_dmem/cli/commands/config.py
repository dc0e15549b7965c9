# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem config show``: what is in force, and which file said so."""

from __future__ import annotations

import argparse
import json
from operator import attrgetter

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import keys, load_config_and_origins
from virt_dmem.errors import ExitStatus

__all__ = ["show"]


def show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print every key with its value, as TOML, and with ``--origin`` the file that set it behind it."""
    config, origins = load_config_and_origins(args.config)
    rows = [
        {"key": key, "value": attrgetter(key)(config), "default": default, "origin": origins.get(key)}
        for key, _, default in keys()
    ]
    for row in rows:
        line = f"{row['key']} = {json.dumps(row['value'], ensure_ascii=False)}"
        out.text(f"{line:<60}  # {row['origin'] or 'default'}" if args.origin else line)
    out.result(keys=rows)
    return ExitStatus.DONE
