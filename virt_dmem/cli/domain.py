# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem list``, ``show`` and ``reconcile``: what virt-dmemd knows of domains.

``list`` asks virt-dmemd alone: libvirt would let it wait behind the very start that one wants to watch.
Only ``list --applied`` is a question for libvirt.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from virt_dmem.cli import columns
from virt_dmem.cli.output import Output
from virt_dmem.config import Config, load_config
from virt_dmem.errors import DaemonUnreachable, ExitStatus
from virt_dmem.ipc.client import Client
from virt_dmem.units import format_size

__all__ = ["list_domains", "reconcile", "show"]


def list_domains(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the domains that hold memory, or those whose persistent XML is rewritten."""
    config = load_config(args.config)
    if args.applied:
        shown = columns.choose(columns.DOMAINS, args.output, "NAME,ACTIVE,PHASE,RESERVED,UUID")
        rows = _applied(args, out, config)
    else:
        available = {name: column for name, column in columns.DOMAINS.items() if name != "ACTIVE"}
        shown = columns.choose(available, args.output, "NAME,PHASE,RESERVED,POOLS,UUID")
        rows = _held(config)
    out.table(shown, rows)
    out.result(domains=rows)
    return ExitStatus.DONE


def _held(config: Config) -> list[dict[str, Any]]:
    with Client(config.socket_path) as daemon:
        rows: list[dict[str, Any]] = daemon.call("ListDomains")["domains"]
    return rows


def _applied(args: argparse.Namespace, out: Output, config: Config) -> list[dict[str, Any]]:
    """Ask libvirt, and add what virt-dmemd knows; ``None`` where it does not answer."""
    from virt_dmem.hypervisor import Hypervisor  # noqa: PLC0415 -- libvirt only where it is asked

    with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
        domains = [domain for domain in hypervisor.domains() if domain.applied]
    known = True
    held: dict[str, dict[str, Any]] = {}
    try:
        held = {row["uuid"]: row for row in _held(config)}
    except DaemonUnreachable as error:
        known = False
        out.note(f"{error.message} What the domains hold is not shown.")
    nothing: dict[str, Any] = {"phase": None, "reserved_bytes": 0 if known else None, "extents": []}
    return [asdict(domain) | {key: held.get(domain.uuid, nothing)[key] for key in nothing} for domain in domains]


def show(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show what one domain holds, and how long its start took."""
    config = load_config(args.config)
    with Client(config.socket_path) as daemon:
        domain: dict[str, Any] = daemon.call("ShowDomain", domain=args.domain)["domain"]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(domain["since"]))
    out.text(f"{domain['name']} ({domain['uuid']})")
    out.text(f"{domain['phase']} since {since}, holds {format_size(domain['reserved_bytes'])}\n")
    out.table(list(columns.EXTENTS.values()), domain["extents"])
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
