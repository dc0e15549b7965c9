# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem show``: one domain's memory."""

from __future__ import annotations

import time

from virt_dmem.cli.arguments import add_domain
from virt_dmem.cli.columns import Column, joined, size, text
from virt_dmem.cli.command import Command
from virt_dmem.errors import DomainRefused, ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from virt_dmem.cli.json_schema import Domain
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Lists its extents (files in a pool, one for each of QEMU's memory backends) with
their pool, size and nodes. If QEMU has a second monitor, also what QEMU reports
for each memory backend. Of a domain that holds no memory it says why: it is shut
off, not applied, or does not exist. The phases are those of 'virt-dmem list'.

With --timing it lists the steps of the last start, each with the time at which
it ended: 'prepare', 'start' and 'started' are libvirt's calls of the hook, as
virt-dmemd served them; with 'hook' behind it, the time until virt-dmemd had the
call; any other step is a part of one of them. The sum of the calls is what pool
memory added to the start."""

_EXTENTS = (
    text("ALIAS", "alias"),
    text("POOL", "pool"),
    size("SIZE", "size_bytes"),
    size("PAGES", "page_size"),
    Column("NODES", lambda row: joined(row["nodes"])),
    text("STATE", "state"),
    text("PATH", "path"),
)
_BACKENDS = (
    text("BACKEND", "id"),
    text("KIND", "kind"),
    size("SIZE", "size_bytes"),
    text("POLICY", "policy"),
    Column("NODES", lambda row: joined(row["host_nodes"])),
    Column("PREALLOCATED", lambda row: "yes" if row["preallocated"] else "no"),
    Column("SHARED", lambda row: "yes" if row["shared"] else "no"),
    Column("POOL", lambda row: "yes" if row["in_pool"] else "no"),
    text("PATH", "path"),
)
_STEPS = (
    Column("AT", lambda row: time.strftime("%H:%M:%S", time.localtime(row["at"]))),
    Column("SECONDS", lambda row: f"{row['seconds']:.3f}", right=True),
    text("STEP", "step"),
)


class ShowAnswer:
    """`show`."""

    domain: Domain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_domain(parser)
    parser.add_argument("--timing", action="store_true", help="show how long each step of its last start took")


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show the memory that one domain holds, and how long its start took."""
    from virt_dmem.cli.daemon import connect
    from virt_dmem.cli.output import local_time

    with connect(args) as daemon:
        try:
            domain: dict[str, Any] = daemon.call("ShowDomain", domain=args.domain)["domain"]
        except DomainRefused as refusal:
            from virt_dmem.cli.domain_state import holds_nothing

            raise holds_nothing(args, refusal) from refusal
        domain["backends"] = daemon.call("ShowBackends", domain=domain["uuid"])["backends"]
    ours = {name for extent in domain["extents"] for name in (extent["alias"], f"mem{extent['alias']}")}
    for backend in domain["backends"]:
        backend["in_pool"] = backend["id"] in ours
    out.text(f"{domain['name']} ({domain['uuid']})")
    out.text(f"{domain['phase']} since {local_time(domain['since'])}, holds {out.size(domain['reserved_bytes'])}\n")
    if domain.get("state_file"):
        out.text(f"Its saved state is {domain['state_file']}\n")
    out.table(_EXTENTS, domain["extents"])
    if domain["backends"]:
        out.text("\nReported by QEMU:")
        out.table(_BACKENDS, domain["backends"])
        if others := [backend["id"] for backend in domain["backends"] if not backend["in_pool"]]:
            out.note(
                f"Not from a pool, and not charged: {', '.join(others)}. It is another device's own, or was added"
                " bypassing virt-dmem."
            )
    if args.timing:
        out.text("")
        out.table(_STEPS, domain["steps"])
        if total := _hook_seconds(domain["steps"]):
            out.text(f"\nThe hooks of its start took {total:.3f} s in all.")
    out.result(domain=domain)
    return ExitStatus.DONE


def _hook_seconds(steps: list[dict[str, Any]]) -> float:
    """Return how long the hooks of a start took: the calls as a whole, not their parts, nor those of its end."""
    calls = {f"{name}{hook}" for name in ("prepare", "start", "started") for hook in ("", ": hook")}
    return sum((float(step["seconds"]) for step in steps if step["step"] in calls), 0.0)


COMMANDS = (
    Command(
        "show",
        "show the pool memory of one domain",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="ShowAnswer",
    ),
)
