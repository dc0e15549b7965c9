# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool destroy``: done by root in this process, in agreement with virt-dmemd."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress

from virt_dmem.cli.arguments import add_dry_run, add_pool
from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.confirm import add_yes, confirm
from virt_dmem.errors import DaemonUnreachable, ExitStatus, UsageError
from virt_dmem.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Rejected while domains hold memory from it. On a terminal it asks first. Memory
that the kernel does not take back is reported, and the command may be repeated.
Some kernels lose huge pages when they free them ('virt-dmem check', line hvo):
there it is refused without --force. Requires root."""


class PoolDestroyAnswer:
    """`pool destroy`."""

    pool: Annotated[str, says("name of the pool")]
    destroyed: Annotated[bool, says("it is gone; false with --dry-run")]
    given_back_bytes: Annotated[int, says("memory that the host gets back, or would (--dry-run)")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_pool(parser)
    add_dry_run(parser)
    add_yes(parser)
    parser.add_argument(
        "--wait", action="store_true", help="first drain it, and wait until no domain holds memory from it"
    )
    parser.add_argument(
        "--timeout", type=parse_duration, metavar="TIME", help="with --wait: give up after this time, such as 10m"
    )
    parser.add_argument(
        "--force", action="store_true", help="also on a kernel that loses the memory until the next boot"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Unmount a pool and return its memory to the host.

    virt-dmemd is asked first: it refuses while domains hold memory, and allocates nothing from the pool any more.
    Where nobody listens nobody allocates either, and ``manage.destroy`` still refuses a pool that holds a file. A
    virt-dmemd that listens but does not answer may be allocating: then nothing is done.
    """
    from virt_dmem.cli.pool_changes import PoolDaemon, refresh_pools, reporting_lost_pages, require_nothing_lost
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.cli.terminal.progress import progress
    from virt_dmem.config.schema import load_config
    from virt_dmem.host import boot_units
    from virt_dmem.pools import manage, registry
    from virt_dmem.pools.backends.table import backend

    if args.timeout and not args.wait:
        raise UsageError("--timeout requires --wait.", hint="See 'virt-dmem pool destroy --help'.")
    config = load_config(args.config)
    require_root("Destroying a pool")
    there = registry.segments(config, args.name)
    freed = {record.name: backend(record.backend).given_back(record) for record in there}
    size = out.size(sum(freed.values()))
    by_record = [(record, freed[record.name]) for record in there]
    if not args.wait:  # before anything is asked or said
        with PoolDaemon(config) as daemon:
            daemon.require_empty(args.name)
    if args.dry_run:
        for record in there:
            manage.refuse_if_used(record, but_helpers=True)
        require_nothing_lost(out, args.name, by_record, forced=args.force)
        mounts = ", ".join(record.mount for record in there)
        out.text(f"Would unmount {mounts} and give {size} back to the host.")
        out.result(pool=args.name, destroyed=False, given_back_bytes=sum(freed.values()))
        return ExitStatus.DONE
    require_nothing_lost(out, args.name, by_record, forced=args.force)
    confirm(args, f"Destroy pool {args.name} and give {size} back to the host?")
    with _emptied(args, out), PoolDaemon(config) as daemon:
        daemon.retire(args.name)
        try:
            with reporting_lost_pages(out), progress(out) as report:
                manage.destroy(config, args.name, report=report)
        finally:
            refresh_pools(config, args.name)
    out.text(f"Pool {args.name} destroyed.")
    if boot_units.is_enabled(args.name):
        unit = boot_units.unit_of(args.name)
        out.note(
            f"{unit} is still enabled; without a pool it does nothing. To disable it: systemctl disable {unit}"
        )
    out.result(pool=args.name, destroyed=True, given_back_bytes=sum(freed.values()))
    return ExitStatus.DONE


@contextmanager
def _emptied(args: argparse.Namespace, out: Output) -> Iterator[None]:
    """With --wait: wait until the pool is empty, and keep it so in this context.

    virt-dmemd drains it as long as the connection is open: however this process ends, the pool gives memory again.

    :raise PoolBusy: When that takes too long.
    """
    from virt_dmem.cli.daemon import connect
    from virt_dmem.cli.pool_changes import wait_until_empty

    with ExitStack() as connected:
        daemon = None
        if args.wait:
            with suppress(DaemonUnreachable):  # while none runs, no domain gets any
                daemon = connected.enter_context(connect(args))
        if daemon:
            states = {pool["name"]: pool["state"] for pool in daemon.call("ListPools")["pools"]}
            drained = states.get(args.name) == "draining"
            then = "The pool is still draining." if drained else "The pool gives memory again."
            daemon.call("EmptyPool", name=args.name)
            wait_until_empty(daemon, args.name, out, args.timeout, then)
        yield


COMMANDS = (
    Command(
        "pool destroy",
        "unmount a pool and return its memory to the host",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="PoolDestroyAnswer",
    ),
)
