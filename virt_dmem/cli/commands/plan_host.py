# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem plan-host``."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from virt_dmem.cli import columns
from virt_dmem.cli.output import Output
from virt_dmem.errors import ExitStatus, UsageError
from virt_dmem.host import boot_reservation
from virt_dmem.pools import host_planning as planning

__all__ = ["plan_host"]


def plan_host(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show for each kind of memory what it saves, what it asks of the kernel, and which one fits this host."""
    if args.remove_grub:
        return _remove_grub(out)
    if args.guest_memory is None:
        raise UsageError("How much memory all guests have together is missing.", hint="Give --guest-memory SIZE.")
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
    grub = _write_grub(options, out) if args.write_grub else None
    out.result(
        guest_memory_bytes=args.guest_memory,
        nodes=[{"node": node, "total_bytes": total} for node, total in facts.nodes.items()],
        hvo={None: "absent", True: "on", False: "off"}[facts.hvo],
        options=rows,
        warnings=warnings,
        grub=grub,
    )
    return ExitStatus.DONE


def _write_grub(options: list[planning.Option], out: Output) -> str:
    """Have GRUB give the kernel what dmemfs needs.

    :raise UsageError: When the addresses are not known.
    """
    (line,) = [option.kernel_command_line for option in options if option.backend == "dmemfs"]
    if "$START" in line:
        raise UsageError(
            "GRUB cannot be told what to reserve: it is not known where on this host so much memory lies.",
            hint="Run it as root on the host itself, and for less memory than it has.",
        )
    path = boot_reservation.write_grub(line)
    out.note(f"{path} is written: {line}. Run update-grub (or grub2-mkconfig), then reboot.")
    return str(path)


def _remove_grub(out: Output) -> ExitStatus:
    """Take back what ``_write_grub`` wrote."""
    removed = boot_reservation.remove_grub()
    path = boot_reservation.GRUB_DROP_IN
    if removed:
        out.note(f"{path} is removed. Run update-grub (or grub2-mkconfig); then reboot.")
    else:
        out.note(f"There is no {path}.")
    out.result(
        guest_memory_bytes=None, nodes=[], hvo=None, options=[], warnings=[], grub=str(path) if removed else None
    )
    return ExitStatus.DONE


def _line(out: Output, name: str, text: str) -> None:
    """Print what is to be copied: in one line, however long."""
    if text:
        out.text(f"  {name + ':':<21}{text}")


def _paragraph(out: Output, text: str) -> None:
    out.text(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
