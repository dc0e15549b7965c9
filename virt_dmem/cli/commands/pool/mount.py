# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool mount``: what a pool's systemd unit runs."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_pool
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus
from virt_dmem.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import Pool, says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Run by virt-dmem-pool@NAME.service. A pool whose creation or destruction was
interrupted is removed. Requires root."""


_UNDONE = {
    "destroying": "The destruction of pool {0} was interrupted, and is completed now: pool {0} is gone.",
    "creating": "The creation of pool {0} was interrupted: what it had was given back. Create it again.",
}


class PoolMountAnswer:
    """`pool mount`."""

    pool: Annotated[Pool | None, says("null: it was incomplete, and its remains were removed")]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Mount a recorded pool with its memory, and tell virt-dmemd if it runs."""
    from virt_dmem.cli.pool_changes import refresh_pools
    from virt_dmem.cli.pool_rows import row_of
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.cli.terminal.progress import progress
    from virt_dmem.config.schema import load_config
    from virt_dmem.pools import manage, registry

    config = load_config(args.config)
    require_root("Mounting a pool")
    state = registry.find(config, args.name).state
    with progress(out) as report:
        record = manage.mount(config, args.name, report=report)
    if record is None:
        out.text(_UNDONE.get(state, _UNDONE["destroying"]).format(args.name))
    else:
        row = row_of(registry.segments(config, args.name))
        out.text(f"Pool {args.name}: {format_size(row['capacity_bytes'])} at {record.mount}")
    out.result(pool=record and row)
    refresh_pools(config, args.name)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "pool mount",
        "mount a recorded pool after a reboot (used by its systemd unit)",
        run,
        about=_ABOUT,
        arguments=add_pool,
        answer="PoolMountAnswer",
    ),
)
