# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry of the ``virt-dmem`` command: parse, hand over to one noun's module, turn a failure into a sentence.

Nouns are imported only when they are asked for: ``virt-dmem explain`` needs no libvirt, a filter no socket.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from virt_dmem.cli.output import Output
from virt_dmem.cli.parser import build_parser
from virt_dmem.errors import DmemError, ExitStatus, PermissionRefused

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

INTERRUPTED = 130
"""What a shell reports for a command that ended by SIGINT: 128 + 2."""
READER_GONE = 141
"""The same for SIGPIPE: 128 + 13."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status (``errors.ExitStatus``, or 128 + signal)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    try:
        status = int(_run(arguments))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = READER_GONE
    try:
        sys.stdout.flush()
    except OSError:  # was reported: what is still buffered must not fail again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _replace_closed_streams() -> None:
    """Stand in for streams that the caller closed (``<&-``): Python has ``None`` there."""
    sys.stdin = sys.stdin or Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _run(arguments: list[str]) -> ExitStatus:
    out = Output(as_json="--json" in arguments)
    try:
        args = build_parser().parse_args(arguments)
        status = _handler(args.handler)(args, out)
        sys.stdout.flush()
        return status
    except DmemError as error:
        failure = error
    except BrokenPipeError:
        raise
    except PermissionError as error:
        failure = PermissionRefused(
            _sentence(error),
            hint="Run it as root, or look with a member of the group virt-dmem.",
        )
    except OSError as error:
        failure = DmemError(_sentence(error), hint="'virt-dmem check' looks around.")
    out.error(failure)
    return failure.exit_status


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."


def _handler(name: str) -> Callable[[argparse.Namespace, Output], ExitStatus]:
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(f"virt_dmem.cli.{module}"), function)
    return cast("Callable[[argparse.Namespace, Output], ExitStatus]", found)


if __name__ == "__main__":
    sys.exit(main())
