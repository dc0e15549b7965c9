# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem status``: pools, domains, alerts and failed checks on one screen."""

from __future__ import annotations

import time

from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.screen import CLEAR, Screen, add_color
from virt_dmem.errors import DaemonUnreachable, ExitStatus, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Annotated, Any

    from virt_dmem.cli.json_schema import Alert, CheckResult, Domain, Pool, says
    from virt_dmem.cli.output import Output
    from virt_dmem.cli.terminal.screen import Part
    from virt_dmem.config.schema import Config
    from virt_dmem.pools.backends.checks import Result

    Found = list[tuple[str, Result]]
    Rows = list[dict[str, Any]]

__all__ = ["COMMANDS"]

_ABOUT = """\
For each pool, and each of its nodes where it has several, a bar shows

  #  memory that domains hold
  +  free memory that is pre-zeroed: a domain starts on it at once
  ·  other free memory, and what an elastic pool may still take

Below are the domains that hold most, the active alerts, and what 'virt-dmem
check' does not pass. It works without virt-dmemd, and then shows what the pools'
records tell. The exit status is 3 if a check failed."""

_WATCH_SECONDS = 2.0
_LEAST_SECONDS = 0.2
_CHECK_SECONDS = 10.0
"""Least time between two runs of all checks with --watch."""
_MOST_DOMAINS = 10
_BAR = 40


class StatusAnswer:
    """`status`; the exit status is 3 if a check failed."""

    pools: list[Pool]
    domains: Annotated[list[Domain] | None, says("those that hold pool memory; null: virt-dmemd does not answer")]
    alerts: Annotated[list[Alert] | None, says("the active ones; null likewise")]
    checks: Annotated[list[CheckResult], says("those that did not pass")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=_WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show it again and again, every {_WATCH_SECONDS:g} seconds or as given, until interrupted",
    )
    add_color(parser)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show the status once, or with ``--watch`` until it is interrupted."""
    from virt_dmem.cli.check_results import rows
    from virt_dmem.config.schema import load_config

    if args.watch is not None and out.as_json:
        raise UsageError("--watch cannot be combined with --json.", hint="'virt-dmem events --json' is a stream.")
    if args.watch is not None and not args.watch >= _LEAST_SECONDS:
        raise UsageError(
            f"--watch cannot be {args.watch:g}: at least {_LEAST_SECONDS} seconds.",
            hint="See 'virt-dmem status --help'.",
        )
    config = load_config(args.config)
    found: Found = []
    checked = float("-inf")
    while True:
        if time.monotonic() >= checked + _CHECK_SECONDS:
            found, checked = _checks(args, config), time.monotonic()
        seen = _look(config, out)
        screen = Screen(args.color)
        lines = "\n".join(_lines(seen, found, screen, out))
        clear = CLEAR if args.watch is not None and screen.in_color else ""
        out.painted(f"{clear}{lines}\n")
        out.flush()
        if args.watch is None:
            break
        time.sleep(args.watch)
    checks = rows(found)
    out.result(**seen, checks=checks)
    failed = any(check["status"] == "FAIL" for check in checks)
    return ExitStatus.CHECK_FAILED if failed else ExitStatus.DONE


def _checks(args: argparse.Namespace, config: Config) -> Found:
    """Return the results of all checks that did not pass; alerts are shown by themselves."""
    from virt_dmem.monitoring.checks.base import Machine
    from virt_dmem.monitoring.checks.suite import run as run_checks
    from virt_dmem.pools.backends.checks import Status

    return [
        (item.name, result)
        for item, result in run_checks(Machine(config, args.connect or config.libvirt.uri))
        if result.status is not Status.PASS and item.name != "alerts"
    ]


def _look(config: Config, out: Output) -> dict[str, Rows | None]:
    """Return pools, domains and alerts; the latter ``None`` where virt-dmemd does not answer."""
    from virt_dmem.cli.pool_rows import pool_rows
    from virt_dmem.ipc.client import Client

    pools = pool_rows(config, out)
    try:
        with Client(config.socket_path) as daemon:
            domains, alerts = daemon.call("ListDomains")["domains"], daemon.call("ListAlerts")["alerts"]
    except DaemonUnreachable:  # said with the pools
        domains = alerts = None
    return {"pools": pools, "domains": domains, "alerts": alerts}


def _lines(seen: dict[str, Any], found: Found, screen: Screen, out: Output) -> Iterator[str]:
    """Yield the lines of the screen."""
    yield screen.paint("POOLS", "bold")
    for pool in seen["pools"]:
        yield from _pool_lines(pool, screen, out)
    if not seen["pools"]:
        yield "  none; 'virt-dmem pool create' makes one"
    yield ""
    yield from _domain_lines(seen["domains"], screen, out)
    yield ""
    yield from _alert_lines(seen["alerts"], screen)
    yield ""
    yield from _check_lines(found, screen)


def _pool_lines(pool: dict[str, Any], screen: Screen, out: Output) -> Iterator[str]:
    pages = out.size(pool["page_size"])
    state = "" if pool["state"] == "ready" else f", {screen.paint(pool['state'], 'yellow')}"
    yield f"  {screen.paint(pool['name'], 'bold')}  {pool['backend']}, pages of {pages}{state}"
    elastic = pool["elastic"]
    whole = max(pool["capacity_bytes"], elastic["max_bytes"]) if elastic else pool["capacity_bytes"]
    yield f"    {_bar(pool, whole, screen)} {_sizes(pool, out)}"
    if elastic:
        most, room = out.size(elastic["max_bytes"]), out.size(elastic["room_bytes"])
        yield f"    elastic: it may have {most}, and take {room} more now"
    if len(pool["nodes"]) > 1:
        for node in pool["nodes"]:
            yield f"    {_bar(node, node['capacity_bytes'], screen)} {_sizes(node, out)} on node {node['node']}"


def _bar(row: dict[str, Any], whole: int, screen: Screen) -> str:
    held, zeroed = row["reserved_bytes"] or 0, row["ready_bytes"] or 0
    parts: list[Part] = [(held, "#", "blue"), (zeroed, "+", "green")]
    return screen.bar(parts, whole, min(_BAR, max(8, screen.columns - 60)))


def _sizes(row: dict[str, Any], out: Output) -> str:
    if row["reserved_bytes"] is None:
        return f"{out.size(row['capacity_bytes'])}, use not known"
    zeroed = f" ({out.size(row['ready_bytes'])} pre-zeroed)" if row["ready_bytes"] else ""
    used, whole = out.size(row["reserved_bytes"]), out.size(row["capacity_bytes"])
    return f"{used} of {whole} used, {out.size(row['free_bytes'])} free{zeroed}"


def _domain_lines(domains: Rows | None, screen: Screen, out: Output) -> Iterator[str]:
    if domains is None:
        yield f"{screen.paint('DOMAINS', 'bold')}  not known: virt-dmemd does not answer"
        return
    count = f"{len(domains)} with {out.size(_held(domains))}" if domains else "none"
    yield f"{screen.paint('DOMAINS', 'bold')}  {count}"
    largest = sorted(domains, key=lambda domain: (-domain["reserved_bytes"], domain["name"]))
    for domain in largest[:_MOST_DOMAINS]:
        pools = ", ".join(sorted({extent["pool"] for extent in domain["extents"]}))
        phase = screen.paint(f"{domain['phase']:<8}", "" if domain["phase"] == "running" else "yellow")
        yield f"  {out.size(domain['reserved_bytes']):>10}  {phase}  {screen.paint(domain['name'], '')}  ({pools})"
    if more := largest[_MOST_DOMAINS:]:
        yield f"  {out.size(_held(more)):>10}  in {len(more)} more: 'virt-dmem list' lists all"


def _held(domains: Rows) -> int:
    return sum(domain["reserved_bytes"] for domain in domains)


def _alert_lines(alerts: Rows | None, screen: Screen) -> Iterator[str]:
    if alerts is None:
        yield f"{screen.paint('ALERTS', 'bold')}  not known: virt-dmemd does not answer"
        return
    yield f"{screen.paint('ALERTS', 'bold')}  {'' if alerts else screen.paint('none', 'green')}".rstrip()
    for alert in alerts:
        yield f"  {screen.paint(alert['code'], 'red')}"
        yield screen.wrapped(alert["message"], " " * 6)
        yield screen.wrapped(alert["hint"], " " * 6)


def _check_lines(found: Found, screen: Screen) -> Iterator[str]:
    from virt_dmem.cli.check_results import lines, problems

    yield f"{screen.paint('CHECKS', 'bold')}  {'' if found else screen.paint('all pass', 'green')}".rstrip()
    for problem in problems(found):
        yield from lines(problem, screen, "  ")


COMMANDS = (
    Command(
        "status",
        "show pools, domains, alerts and failed checks on one screen",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="StatusAnswer",
    ),
)
