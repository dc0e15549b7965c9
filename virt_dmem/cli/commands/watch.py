# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem alerts``, ``metrics`` and ``pause-apply``: day two."""

from __future__ import annotations

import argparse
import time

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import load_config
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

__all__ = ["alerts", "metrics", "pause_apply"]


def alerts(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show what is not as it should be now: a line each, and what to do below it."""
    with Client(load_config(args.config).socket_path) as daemon:
        active = daemon.call("ListAlerts")["alerts"]
    for alert in active:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alert["since"]))
        out.text(f"{alert['code']} since {since}: {alert['message']}")
        out.text(f"      {alert['hint']}")
    if not active:
        out.text("No alert is active.")
    out.result(alerts=active)
    return ExitStatus.DONE


def metrics(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print virt-dmemd's metrics in Prometheus' text format."""
    with Client(load_config(args.config).socket_path) as daemon:
        text = daemon.call("ShowMetrics")["text"]
    if not out.as_json:
        out.document(text.encode())
    out.result(text=text)
    return ExitStatus.DONE


def pause_apply(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have virt-dmemd rewrite no domain by itself for a while, or go on with it."""
    with Client(load_config(args.config).socket_path) as daemon:
        if args.resume:
            daemon.call("ResumeApply")
        else:
            daemon.call("PauseApply", seconds=args.seconds)
    out.text("Domains are applied again." if args.resume else "No domain is applied by itself now.")
    out.result(paused=not args.resume)
    return ExitStatus.DONE
