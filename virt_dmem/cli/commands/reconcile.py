# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem reconcile``."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_dry_run
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
Differences are repaired. virt-dmemd does the same when it starts and whenever
libvirt becomes available."""


class ReconcileAnswer:
    """`reconcile`."""

    actions: Annotated[list[str], says("what was repaired, or would be (--dry-run): sentences")]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have virt-dmemd compare its ledger with pools, processes and libvirt, and repair the differences."""
    from virt_dmem.cli.daemon import connect

    with connect(args, root_for="Reconciling") as daemon:
        actions: list[str] = daemon.call("Reconcile", dry_run=args.dry_run)["actions"]
    for action in actions:
        out.text(action)
    if not actions:
        out.text("Nothing to do.")
    out.result(actions=actions)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "reconcile",
        "reconcile the ledger with pools and running domains",
        run,
        about=_ABOUT,
        arguments=add_dry_run,
        answer="ReconcileAnswer",
    ),
)
