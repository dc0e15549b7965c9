# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool destroy``: done by root in this process, in agreement with virt-dmemd."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Rejected while domains hold memory from it. Memory that the kernel does not take
back is reported, and the command may be repeated. Requires root."""


class PoolDestroyAnswer:
    """`pool destroy`."""

    pool: Annotated[str, says("name of the destroyed pool")]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Unmount a pool and return its memory to the host.

    virt-dmemd is asked first: it refuses while domains hold memory, and allocates nothing from the pool any more.
    Where nobody listens nobody allocates either, and ``manage.destroy`` still refuses a pool that holds a file. A
    virt-dmemd that listens but does not answer may be allocating: then nothing is done.
    """
    from virt_dmem.cli.pool_changes import PoolDaemon, refresh_pools, reporting_lost_pages
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.cli.progress import progress
    from virt_dmem.config.schema import load_config
    from virt_dmem.host import boot_units
    from virt_dmem.pools import manage, registry

    config = load_config(args.config)
    require_root("Destroying a pool")
    registry.find(config, args.name)
    with PoolDaemon(config) as daemon:
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
    out.result(pool=args.name)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "pool destroy",
        "unmount a pool and return its memory to the host",
        run,
        about=_ABOUT,
        arguments=add_pool,
        answer="PoolDestroyAnswer",
    ),
)
