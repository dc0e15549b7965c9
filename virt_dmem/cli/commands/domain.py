# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem show`` and ``reconcile``: what virt-dmemd knows of a domain, and whether it is right."""

from __future__ import annotations

import argparse
import time
from typing import Any

from virt_dmem.cli import columns
from virt_dmem.cli.output import Output
from virt_dmem.config.schema import load_config
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

__all__ = ["reconcile", "show"]


def show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show what one domain holds, and how long its start took."""
    config = load_config(args.config)
    with Client(config.socket_path) as daemon:
        domain: dict[str, Any] = daemon.call("ShowDomain", domain=args.domain)["domain"]
        domain["backends"] = daemon.call("ShowBackends", domain=domain["uuid"])["backends"]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(domain["since"]))
    out.text(f"{domain['name']} ({domain['uuid']})")
    out.text(f"{domain['phase']} since {since}, holds {out.size(domain['reserved_bytes'])}\n")
    out.table(list(columns.EXTENTS.values()), domain["extents"])
    if domain["backends"]:
        out.text("\nQEMU says:")
        out.table(list(columns.BACKENDS.values()), domain["backends"])
    if args.timing:
        out.text("")
        out.table(list(columns.STEPS.values()), domain["steps"])
    out.result(domain=domain)
    return ExitStatus.DONE


def reconcile(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have virt-dmemd compare its ledger with pools, processes and libvirt, and mend the difference."""
    config = load_config(args.config)
    with Client(config.socket_path) as daemon:
        actions: list[str] = daemon.call("Reconcile", dry_run=args.dry_run)["actions"]
    for action in actions:
        out.text(action)
    if not actions:
        out.text("Nothing to do.")
    out.result(actions=actions)
    return ExitStatus.DONE
