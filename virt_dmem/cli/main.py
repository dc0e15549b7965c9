# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry of the ``virt-dmem`` command: parse, hand over to one noun's module, turn a failure into a sentence.

Nouns are imported only when they are asked for: ``virt-dmem explain`` needs no libvirt, a filter no socket.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

from virt_dmem.cli.output import Output
from virt_dmem.errors import DmemError, ExitStatus, PermissionRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    Handler = Callable[[argparse.Namespace, Output], ExitStatus]

__all__ = ["main"]

INTERRUPTED = 130
"""What a shell reports for a command that ended by SIGINT: 128 + 2."""
READER_GONE = 141
"""The same for SIGPIPE: 128 + 13."""

LIST_JSON = ["--json", "list"]
LIST_JSON_PARSED = {
    "command": "list",
    "handler": "listing:list_domains",
    "applied": False,
    "output": None,
    "json": True,
    "bytes": False,
    "config": None,
    "connect": None,
}
"""What the parser makes of it, in either order: monitoring asks it over and over, and argparse is slow to load."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status (``errors.ExitStatus``, or 128 + signal).

    Without ``argv`` it is the process's own, which then ends here: what the interpreter would still tidy up
    takes 3 ms, and nothing of ours is in it.
    """
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
        sys.stderr.flush()
    except OSError:  # was reported: what is still buffered must not fail again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if argv is None:
        os._exit(status)
    return status


def _replace_closed_streams() -> None:
    """Stand in for streams that the caller closed (``<&-``): Python has ``None`` there."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _run(arguments: list[str]) -> ExitStatus:
    out = Output(as_json="--json" in arguments, in_bytes="--bytes" in arguments)
    try:
        args = _parse(arguments)
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
            hint="Run it as root; members of the group virt-dmem may use list, show, pool list, pool show, alerts"
            " and metrics.",
        )
    except OSError as error:
        failure = DmemError(_sentence(error), hint="'virt-dmem check' looks around.")
    out.error(failure)
    return failure.exit_status


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."


def _parse(arguments: list[str]) -> argparse.Namespace:
    if sorted(arguments) == LIST_JSON:
        return SimpleNamespace(**LIST_JSON_PARSED)  # type: ignore[return-value] # as good as argparse's own
    from virt_dmem.cli.parser import build_parser  # noqa: PLC0415 -- see LIST_JSON

    return build_parser().parse_args(arguments)


def _handler(name: str) -> Handler:
    module, _, function = name.partition(":")
    handler: Handler = getattr(__import__(f"virt_dmem.cli.commands.{module}", fromlist=[function]), function)
    return handler


if __name__ == "__main__":
    sys.exit(main())
