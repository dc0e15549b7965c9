# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem list``.

It asks virt-dmemd alone: libvirt would let it wait behind the very start that one wants to watch. Only
``list --applied`` is a question for libvirt. Monitoring runs ``list --json`` every few seconds, so everything else
is imported where it is needed (decision 0007).
"""

from __future__ import annotations

import re

from virt_dmem.cli.columns import Column, choose, joined, select, size, table, text
from virt_dmem.cli.command import Command
from virt_dmem.cli.daemon import socket_path
from virt_dmem.errors import DaemonUnreachable, ExitStatus, UsageError
from virt_dmem.ipc.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from virt_dmem.cli.columns import Table
    from virt_dmem.cli.json_schema import Domain
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config

    Rows = list[dict[str, Any]]

__all__ = ["COMMANDS"]

_ABOUT = """\
It asks virt-dmemd only. With --applied it asks libvirt, and waits while libvirt
waits for a domain that is being started.

PHASE is how far the memory of a domain has come: reserved (charged, being
created), prepared (every page is populated), linked (where QEMU opens it),
running (QEMU maps it), stopped (the domain ends, nothing is freed yet), parked
(it is kept for a guest that is saved: 'virt-dmem unpark')."""

_COLUMNS = table(
    text("NAME", "name", "name of the domain"),
    text("PHASE", "phase", "progress of its memory allocation; - when it holds none"),
    size("RESERVED", "reserved_bytes", "memory it holds in pools"),
    Column(
        "POOLS",
        lambda row: joined(sorted({extent["pool"] for extent in row.get("extents", ())})),
        "pools it holds memory from",
    ),
    Column("ACTIVE", lambda row: "yes" if row["active"] else "no", "whether libvirt runs it now (with --applied)"),
    text("POOL", "pool", "pool that it will get memory from at its next start (with --applied)"),
    size("SIZE", "size_bytes", "memory that it will take at its next start (with --applied)"),
    Column(
        "HOTPLUG-MAX",
        lambda row: row["hotplug_max_bytes"] or None,
        "most memory that it may have with memory attached later; - when none can be (with --applied)",
        size=True,
    ),
    text("STATE-FILE", "state_file", "saved state of a parked domain"),
    text("UUID", "uuid", "its UUID"),
)


_OF_HELD = ("STATE-FILE",)
_WITH_APPLIED = ("ACTIVE", "POOL", "SIZE", "HOTPLUG-MAX")


class ListAnswer:
    """`list`."""

    domains: list[Domain]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--applied", action="store_true", help="list domains whose persistent XML is rewritten, running or not"
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """List the domains that hold pool memory, or those whose persistent XML is rewritten."""
    _require_applied(args)
    shown = _columns(args) if args.output or not out.as_json else []
    rows = _applied(args, out) if args.applied else _held(args)
    if args.filter or args.sort or args.reverse:
        rows = select(rows, _available(args), args)
    out.table(shown, rows, headings=not args.no_headings)
    if not out.as_json:
        _note_alerts(args, out)
    out.result(domains=rows)
    return ExitStatus.DONE


def _require_applied(args: argparse.Namespace) -> None:
    """Reject columns that only --applied can fill.

    :raise UsageError: When one is named without it.
    """
    words = [*(args.output or "").split(","), args.sort or "", *(re.split("[!<>=]", one)[0] for one in args.filter)]
    named = {word.strip().upper() for word in words}
    if needs := [name for name in _WITH_APPLIED if name in named and not args.applied]:
        raise UsageError(f"Column {needs[0]} requires --applied.", hint="See 'virt-dmem list --help'.")


def _columns(args: argparse.Namespace) -> list[Column]:
    if args.applied:
        return choose(_available(args), args.output, "NAME,ACTIVE,POOL,SIZE,HOTPLUG-MAX,PHASE,RESERVED,UUID")
    return choose(_available(args), args.output, "NAME,PHASE,RESERVED,POOLS,UUID")


def _available(args: argparse.Namespace) -> Table:
    others = _OF_HELD if args.applied else _WITH_APPLIED
    return {name: column for name, column in _COLUMNS.items() if name not in others}


def _held(args: argparse.Namespace) -> Rows:
    with Client(socket_path(args)) as daemon:
        rows: Rows = daemon.call("ListDomains")["domains"]
    return rows


def _note_alerts(args: argparse.Namespace, out: Output) -> None:
    """Print a note for each active alert: it may be why the list is consulted."""
    from contextlib import suppress

    with suppress(DaemonUnreachable), Client(socket_path(args)) as daemon:
        for alert in daemon.call("ListAlerts")["alerts"]:
            out.note(f"{alert['code']}: {alert['message']}")


def _applied(args: argparse.Namespace, out: Output) -> Rows:
    """Return the applied domains; their memory is ``None`` where virt-dmemd does not answer."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.hypervisor.connection import Hypervisor

    config = load_config(args.config)
    with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
        domains = [domain for domain in hypervisor.domains() if domain.applied]
    known = True
    held: dict[str, dict[str, Any]] = {}
    try:
        held = {row["uuid"]: row for row in _held(args)}
    except DaemonUnreachable as error:
        known = False
        out.note(f"{error.message} The memory that domains hold is not shown.")
    nothing: dict[str, Any] = {"phase": None, "reserved_bytes": 0 if known else None, "extents": []}
    default = _default_pool(config, args)
    return [
        {
            "uuid": domain.uuid,
            "name": domain.name,
            "active": domain.active,
            "managed": domain.managed,
            "applied": domain.applied,
            "pool": (domain.memory.pool if domain.memory else "") or default,
            "size_bytes": domain.memory.total_bytes if domain.memory else 0,
            "hotplug_max_bytes": domain.memory.max_bytes if domain.memory else 0,
            **{key: held.get(domain.uuid, nothing)[key] for key in nothing},
        }
        for domain in domains
    ]


def _default_pool(config: Config, args: argparse.Namespace) -> str | None:
    """Return the pool of domains that name none; ``None`` where there is none, or it cannot be known."""
    from contextlib import suppress

    if config.default_pool:
        return config.default_pool
    names = []
    with suppress(DaemonUnreachable), Client(socket_path(args)) as daemon:
        names = [pool["name"] for pool in daemon.call("ListPools")["pools"]]
    return names[0] if len(names) == 1 else None


COMMANDS = (
    Command(
        "list",
        "list domains that hold pool memory",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        columns=_COLUMNS,
        selects=True,
        answer="ListAnswer",
    ),
)
