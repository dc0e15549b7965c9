# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem alerts``."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from virt_dmem.cli.json_schema import Alert
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Alerts report conditions that made no command fail: a domain with a request that
runs outside of any pool; memory or a device attached in a way that bypasses
virt-dmem; an extent whose domain is gone, or that was enlarged; pinned or failed
memory; a pool smaller than its reservations; a damaged ledger; what could not be
reconciled; concurrent redefinition of a domain; automatic apply that is paused.
A hint follows each of them."""


class AlertsAnswer:
    """`alerts`."""

    alerts: list[Alert]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show the active alerts, each in a line with its hint below."""
    from virt_dmem.cli.daemon import connect
    from virt_dmem.cli.output import local_time

    with connect(args) as daemon:
        active = daemon.call("ListAlerts")["alerts"]
    for alert in active:
        out.text(f"{alert['code']} since {local_time(alert['since'])}: {alert['message']}")
        out.text(f"      {alert['hint']}")
    if not active:
        out.text("No active alerts.")
    out.result(alerts=active)
    return ExitStatus.DONE


COMMANDS = (
    Command("alerts", "show active alerts and how to resolve them", run, about=_ABOUT, answer="AlertsAnswer"),
)
