# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool drain``: stop allocating from a pool."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus, UsageError
from virt_dmem.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from virt_dmem.cli.output import Output
    from virt_dmem.ipc.client import Client

__all__ = ["COMMANDS"]

_ABOUT = """\
Running domains keep the memory they hold; new allocations are rejected. The
state survives restarts of virt-dmemd. Requires root."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_pool(parser)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--undo", action="store_true", help="allow allocations from it again")
    either.add_argument("--wait", action="store_true", help="wait until no domain holds memory from it")
    parser.add_argument(
        "--timeout", type=parse_duration, metavar="TIME", help="with --wait: fail after this time, such as 10m"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have virt-dmemd stop or resume allocating; with ``--wait`` wait until no domain holds memory from it."""
    from virt_dmem.cli.daemon import connect
    from virt_dmem.cli.pool_changes import draining, wait_until_empty

    if args.timeout and not args.wait:
        raise UsageError("--timeout requires --wait.", hint="See 'virt-dmem pool drain --help'.")
    with connect(args, root_for="Draining a pool") as daemon:
        daemon.call("DrainPool", name=args.name, undo=args.undo)
        if args.wait:
            wait_until_empty(daemon, args.name, out, args.timeout, "The pool is still draining.")
        pool = _pool(daemon, args.name)
        if args.undo:
            out.text(f"Pool {args.name} is in use again.")
        elif not args.wait:
            out.text(draining(pool, out))
    out.result(pool=pool)
    return ExitStatus.DONE


def _pool(daemon: Client, name: str) -> dict[str, Any]:
    from virt_dmem.host.boot_units import is_enabled

    found: dict[str, Any] = next(pool for pool in daemon.call("ListPools")["pools"] if pool["name"] == name)
    return found | {"on_boot": is_enabled(name)}


COMMANDS = (
    Command(
        "pool drain",
        "stop allocating from a pool; running domains keep their memory",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="PoolAnswer",
    ),
)
