# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the ``virt-dmem`` command: parse, call the command's module, report failures.

Only the module of the command in use is imported, and by it only what that needs: ``virt-dmem explain`` needs no
libvirt, a filter no socket.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

from virt_dmem.cli import registry
from virt_dmem.cli.output import Output
from virt_dmem.errors import DmemError, ExitStatus, PermissionRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130
"""Exit status that a shell reports for a command ended by SIGINT: 128 + 2."""
READER_GONE = 141
"""The same for SIGPIPE: 128 + 13."""

LIST_JSON = ["--json", "list"]
LIST_JSON_PARSED = {
    "command": "list",
    "applied": False,
    "output": None,
    "no_headings": False,
    "sort": None,
    "reverse": False,
    "filter": [],
    "json": True,
    "bytes": False,
    "config": None,
    "connect": None,
}
"""Result of the parser for it, in either order: monitoring runs it over and over, and argparse is slow to load."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status (``errors.ExitStatus``, or 128 + signal).

    Without ``argv`` it is the process's own, which then ends here: the interpreter's own cleanup takes 3 ms and
    does nothing that is needed.
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
    except OSError:  # already reported: buffered output must not fail again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if argv is None:
        os._exit(status)
    return status


def _replace_closed_streams() -> None:
    """Open /dev/null for streams that the caller closed (``<&-``): Python has ``None`` there."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _run(arguments: list[str]) -> ExitStatus:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments  # behind it are names
    out = Output(as_json="--json" in options, in_bytes="--bytes" in options)
    try:
        args = _parse(arguments)
        status = registry.load(_name(args)).run(args, out)
        out.flush()
        return status
    except DmemError as error:
        failure = error
    except BrokenPipeError:
        raise
    except PermissionError as error:
        failure = PermissionRefused(
            _explained(error).message,
            hint="Run it as root; members of virt-dmemd's group may use list, show, pool list, pool show, alerts,"
            " events and metrics.",
        )
    except OSError as error:
        failure = _explained(error)
    out.error(failure)
    return failure.exit_status


def _explained(error: OSError) -> DmemError:
    from virt_dmem.os_errors import explained  # noqa: PLC0415 -- see LIST_JSON

    return explained(error)


def _parse(arguments: list[str]) -> argparse.Namespace:
    if sorted(arguments) == LIST_JSON:
        return SimpleNamespace(**LIST_JSON_PARSED)  # type: ignore[return-value] # used like argparse's own
    from virt_dmem.cli.parser import build_parser  # noqa: PLC0415 -- see LIST_JSON

    return build_parser(registry.named(arguments)).parse_args(arguments)


def _name(args: argparse.Namespace) -> str:
    return f"{args.command} {getattr(args, 'verb', '')}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
