# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem plan-host``."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from virt_dmem import plan_host as planning
from virt_dmem.cli import columns
from virt_dmem.cli.output import Output
from virt_dmem.errors import ExitStatus

__all__ = ["plan_host"]


def plan_host(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show for each kind of memory what it saves, what it asks of the kernel, and which one fits this host."""
    facts = planning.read_host()
    options = planning.plan_host(args.guest_memory, facts)
    warnings = planning.warnings(args.guest_memory, facts)
    rows = [asdict(option) for option in options]
    shown = columns.choose(columns.PLAN, args.output, "BACKEND,PAGES,GROSS,LEFT,NET,HERE")
    out.table(shown, rows)
    for option in options:
        title = f"{option.backend}, pages of {out.size(option.page_size)}"
        out.text(f"\n{title}{': recommended here' if option.recommended else ''}")
        if option.reason:
            _paragraph(out, option.reason)
        _line(out, "kernel command line", option.kernel_command_line or "nothing to add")
        _line(out, "then", option.pool_create)
        for note in option.notes:
            _paragraph(out, note)
    for warning in warnings:
        out.note(warning)
    out.result(
        guest_memory_bytes=args.guest_memory,
        nodes=[{"node": node, "total_bytes": total} for node, total in facts.nodes.items()],
        hvo={None: "absent", True: "on", False: "off"}[facts.hvo],
        options=rows,
        warnings=warnings,
    )
    return ExitStatus.DONE


def _line(out: Output, name: str, text: str) -> None:
    """Print what is to be copied: in one line, however long."""
    if text:
        out.text(f"  {name + ':':<21}{text}")


def _paragraph(out: Output, text: str) -> None:
    out.text(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
