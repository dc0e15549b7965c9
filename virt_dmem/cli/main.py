# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry of the ``virt-dmem`` command: parse, hand over to one noun's module, turn a failure into a sentence.

Nouns are imported only when they are asked for: ``virt-dmem explain`` needs no libvirt, a filter no socket.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
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
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whatever is still buffered must not raise again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return int(status)


def _run(arguments: list[str]) -> ExitStatus:
    out = Output(as_json="--json" in arguments)
    try:
        args = build_parser().parse_args(arguments)
        return _handler(args.handler)(args, out)
    except DmemError as error:
        failure = error
    except BrokenPipeError:
        raise
    except PermissionError as error:
        failure = PermissionRefused(
            f"{error.strerror}: {error.filename}.",
            hint="Run it as root, or look with a member of the group virt-dmem.",
        )
    except OSError as error:
        failure = DmemError(f"{error.strerror or error}: {error.filename}.", hint="'virt-dmem check' looks around.")
    out.error(failure)
    return failure.exit_status


def _handler(name: str) -> Callable[[argparse.Namespace, Output], ExitStatus]:
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(f"virt_dmem.cli.{module}"), function)
    return cast("Callable[[argparse.Namespace, Output], ExitStatus]", found)


if __name__ == "__main__":
    sys.exit(main())
