# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds what a command prints with ``--json`` against what is documented."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from virt_dmem.cli.json_schema import Failure, answers
from virt_dmem.cli.parser import build_parser

__all__ = ["command_of", "require_documented"]


def command_of(args: Sequence[str]) -> str:
    """The command in a command line: ``pool create``."""
    parsed = build_parser().parse_args(args)
    return f"{parsed.command} {getattr(parsed, 'verb', '')}".strip()


def require_documented(args: Sequence[str], printed: str) -> Any:
    """Return the answer decoded; fails where a field is missing, of another type, or not documented."""
    answer = json.loads(printed)
    kind = Failure if "error" in answer else answers()[command_of(args)]
    assert msgspec.to_builtins(msgspec.convert(answer, kind)) == answer
    return answer
