# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem list``.

It asks virt-dmemd alone: libvirt would let it wait behind the very start that one wants to watch. Only
``list --applied`` is a question for libvirt. ``list --json`` is asked over and over by monitoring, so what only
others need is imported where they need it (decision 0007).
"""

from __future__ import annotations

from contextlib import suppress

from virt_dmem.config.files import DEFAULT_RUN_DIR, SOCKET_NAME, mentions
from virt_dmem.errors import DaemonUnreachable, ExitStatus
from virt_dmem.ipc.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from virt_dmem.cli.output import Column, Output

    Rows = list[dict[str, Any]]

__all__ = ["list_domains"]


def list_domains(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the domains that hold memory, or those whose persistent XML is rewritten."""
    shown = _columns(args) if args.output or not out.as_json else []
    rows = _applied(args, out) if args.applied else _held(args)
    out.table(shown, rows)
    if not out.as_json:
        _note_alerts(args, out)
    out.result(domains=rows)
    return ExitStatus.DONE


def _columns(args: argparse.Namespace) -> list[Column]:
    from virt_dmem.cli import columns  # noqa: PLC0415

    if args.applied:
        return columns.choose(columns.DOMAINS, args.output, "NAME,ACTIVE,PHASE,RESERVED,UUID")
    available = {name: column for name, column in columns.DOMAINS.items() if name != "ACTIVE"}
    return columns.choose(available, args.output, "NAME,PHASE,RESERVED,POOLS,UUID")


def _held(args: argparse.Namespace) -> Rows:
    with Client(_socket_path(args)) as daemon:
        rows: Rows = daemon.call("ListDomains")["domains"]
    return rows


def _note_alerts(args: argparse.Namespace, out: Output) -> None:
    """Tell of alerts: who looks at the list may be looking for the reason."""
    with suppress(DaemonUnreachable), Client(_socket_path(args)) as daemon:
        for alert in daemon.call("ListAlerts")["alerts"]:
            out.note(f"{alert['code']}: {alert['message']}")


def _socket_path(args: argparse.Namespace) -> str:
    """Return where virt-dmemd listens; the configuration is parsed only where it may say so.

    A typo elsewhere in it does not blind who watches a daemon that runs.
    """
    if not mentions("run_dir", args.config):
        return f"{DEFAULT_RUN_DIR}/{SOCKET_NAME}"
    from virt_dmem.config.schema import load_config  # noqa: PLC0415

    return str(load_config(args.config).socket_path)


def _applied(args: argparse.Namespace, out: Output) -> Rows:
    """Ask libvirt, and add what virt-dmemd knows; ``None`` where it does not answer."""
    from dataclasses import asdict  # noqa: PLC0415

    from virt_dmem.config.schema import load_config  # noqa: PLC0415
    from virt_dmem.hypervisor.connection import Hypervisor  # noqa: PLC0415 -- libvirt only where it is asked

    with Hypervisor(args.connect or load_config(args.config).libvirt.uri) as hypervisor:
        domains = [domain for domain in hypervisor.domains() if domain.applied]
    known = True
    held: dict[str, dict[str, Any]] = {}
    try:
        held = {row["uuid"]: row for row in _held(args)}
    except DaemonUnreachable as error:
        known = False
        out.note(f"{error.message} What the domains hold is not shown.")
    nothing: dict[str, Any] = {"phase": None, "reserved_bytes": 0 if known else None, "extents": []}
    return [asdict(domain) | {key: held.get(domain.uuid, nothing)[key] for key in nothing} for domain in domains]
