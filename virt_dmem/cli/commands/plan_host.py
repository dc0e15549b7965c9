# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem plan-host``: recommend a kind of memory, compare all of them, and set up the host's boot for one."""

from __future__ import annotations

from virt_dmem.cli.arguments import add_dry_run
from virt_dmem.cli.columns import BACKEND, GROSS, LEFT, NET, PAGES, Column, choose, size, table, text
from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.confirm import add_yes, confirm
from virt_dmem.errors import ExitStatus, UsageError
from virt_dmem.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any, Literal

    from virt_dmem.cli.json_schema import PageSize, says
    from virt_dmem.cli.output import Output
    from virt_dmem.pools.backends import host_options

__all__ = ["COMMANDS"]

_ABOUT = """\
Recommends one kind of memory, with the reason, what to add to the kernel command
line, and the command that creates the pool. With --all it compares all kinds
that pools can have: the struct pages that an ordinary host keeps for this memory
(gross), those that remain (left), the saving (net), and the two lines for each;
with --output it prints only the table of that.

The size may exceed the memory of this host. Run as root, it reads where memory
lies and prints the ranges for dmemfs as addresses: whole sections of 128 MiB,
from the upper end of each node, so that no struct pages remain. On arm64 it
prints what the kernel is to keep (mem=): the guests get the upper end of all
memory.

Nothing is changed, except by --write-grub, which writes
/etc/default/grub.d/virt-dmem.cfg, and --remove-grub, which removes it; on a
terminal both ask first, and --dry-run only prints what they would do. Both take
effect after update-grub (or grub2-mkconfig) and a reboot."""

_MOST_COLUMNS = 100
"""Of a line of text."""
_COLUMNS = table(
    BACKEND,
    PAGES,
    size("SIZE", "size_bytes", "guest memory in whole pages"),
    GROSS,
    LEFT,
    NET,
    Column(
        "HERE",
        lambda row: "recommended" if row["recommended"] else "yes" if row["pool_create"] else "no",
        "whether this version can create such a pool on this host, and which one is recommended",
    ),
    text("CMDLINE", "kernel_command_line", "what to add to the kernel command line"),
)


class HostNode:
    """A NUMA node of this host."""

    node: Annotated[int, says("number of the host node")]
    total_bytes: Annotated[int, says("its MemTotal")]


class HostOption:
    """One kind of memory for guests; `gross_bytes` = `metadata_left_bytes` + `net_bytes`."""

    backend: Annotated[str, says("a backend of pools")]
    page_size: PageSize
    size_bytes: Annotated[int, says("the guest memory in whole pages")]
    gross_bytes: Annotated[int, says("struct pages that an ordinary host keeps for it")]
    metadata_left_bytes: Annotated[int, says("struct pages that remain")]
    net_bytes: Annotated[int, says("the saving")]
    kernel_command_line: Annotated[str, says("what to add to it; empty: nothing")]
    pool_create: Annotated[str, says("command that creates the pool; empty: not possible here with this version")]
    notes: Annotated[list[str], says("further remarks")]
    recommended: Annotated[bool, says("true for exactly one")]
    reason: Annotated[str, says("why it is recommended here; else empty")]


class PlanHostAnswer:
    """`plan-host`."""

    guest_memory_bytes: Annotated[int | None, says("as given; null with --remove-grub")]
    nodes: Annotated[list[HostNode], says("those that have memory")]
    hvo: Annotated[
        Literal["on", "off", "absent"] | None,
        says("current state of HVO; absent: not supported by the kernel; null: not checked"),
    ]
    options: list[HostOption]
    warnings: Annotated[list[str], says("contradictions between size and host")]
    grub: Annotated[str | None, says("GRUB's file that was written or removed; null: none was")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--guest-memory", type=parse_size, metavar="SIZE", help="total memory of all guests")
    parser.add_argument("--all", action="store_true", help="compare all kinds of memory")
    grub = parser.add_mutually_exclusive_group()
    grub.add_argument(
        "--write-grub",
        action="store_true",
        help="also write the kernel parameters for dmemfs to /etc/default/grub.d (as root)",
    )
    grub.add_argument("--remove-grub", action="store_true", help="only remove them again (as root)")
    add_dry_run(parser, "print what --write-grub or --remove-grub would do, and change nothing")
    add_yes(parser)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Show which kind of memory suits this host best, and with ``--all`` the saving and boot settings of each."""
    import dataclasses

    from virt_dmem.pools import host_planning as planning

    if args.remove_grub:
        return _remove_grub(args, out)
    if args.guest_memory is None:
        raise UsageError("The total memory of all guests is missing.", hint="Give --guest-memory SIZE.")
    facts = planning.read_host()
    options = planning.plan_host(args.guest_memory, facts)
    warnings = planning.warnings(args.guest_memory, facts)
    rows = [dataclasses.asdict(option) for option in options]
    _show(args, options, rows, out)
    for warning in warnings:
        out.note(warning)
    grub = _write_grub(args, options, out) if args.write_grub else None
    out.result(
        guest_memory_bytes=args.guest_memory,
        nodes=[{"node": node, "total_bytes": total} for node, total in facts.nodes.items()],
        hvo={None: "absent", True: "on", False: "off"}[facts.hvo],
        options=rows,
        warnings=warnings,
        grub=grub,
    )
    return ExitStatus.DONE


def _show(
    args: argparse.Namespace, options: list[host_options.HostOption], rows: list[dict[str, Any]], out: Output
) -> None:
    """Print the recommendation, with ``--all`` the comparison below it; with ``--output`` only that's table."""
    shown = choose(_COLUMNS, args.output, "BACKEND,PAGES,GROSS,LEFT,NET,HERE")
    if args.output:
        out.table(shown, rows)
        return
    _print_recommended(next(option for option in options if option.recommended), out)
    if not args.all:
        if not args.write_grub:
            out.text("\nThe other kinds of memory, and remarks on each: with --all.")
        return
    out.text("")
    out.table(shown, rows)
    for option in options:
        _print(option, out)


def _print_recommended(option: host_options.HostOption, out: Output) -> None:
    """Print the recommendation, why, and the two lines to type."""
    out.text(f"Recommended here: {_title(option, out)}")
    _paragraph(out, option.reason)
    _print_lines(option, out)


def _print(option: host_options.HostOption, out: Output) -> None:
    """Print the two lines of one kind of memory, and remarks."""
    out.text(f"\n{_title(option, out)}")
    _print_lines(option, out)
    for note in option.notes:
        _paragraph(out, note)


def _title(option: host_options.HostOption, out: Output) -> str:
    return f"{option.backend}, pages of {out.size(option.page_size)}"


def _print_lines(option: host_options.HostOption, out: Output) -> None:
    _line(out, "kernel command line", option.kernel_command_line or "nothing to add")
    _line(out, "then", option.pool_create)


def _write_grub(args: argparse.Namespace, options: list[host_options.HostOption], out: Output) -> str | None:
    """Write the kernel parameters that reserve memory for a pool to GRUB's configuration.

    :raise UsageError: When the addresses are unknown.
    """
    from virt_dmem.host.ram import boot_reservation
    from virt_dmem.pools.backends.table import BACKENDS

    outside_kernel = {name for name, kind in BACKENDS.items() if not kind.has_struct_pages}
    (chosen,) = [option for option in options if option.backend in outside_kernel]
    line = chosen.kernel_command_line
    if not (args.all or args.output):
        _print(chosen, out)  # what is written may not be what is recommended
    if not boot_reservation.is_complete(line):
        raise UsageError(
            "GRUB's settings cannot be written: which memory to reserve is unknown.",
            hint="Run it as root on the host itself, for less memory than it has; the plan's remarks say more.",
        )
    path = boot_reservation.GRUB_DROP_IN
    if args.dry_run:
        out.note(f"Would write {path}, which adds to the kernel command line: {line}")
        return None
    confirm(args, f"Write {path}, which adds '{line}' to the kernel command line of the next boots?")
    path = boot_reservation.write_grub(line)
    out.note(f"Wrote {path}: {line}. Run update-grub (or grub2-mkconfig), then reboot.")
    return str(path)


def _remove_grub(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Remove what ``_write_grub`` wrote."""
    from virt_dmem.host.ram import boot_reservation

    path = boot_reservation.GRUB_DROP_IN
    removed = False
    if not path.exists():
        out.note(f"{path} does not exist.")
    elif args.dry_run:
        out.note(f"Would remove {path}.")
    else:
        confirm(args, f"Remove {path} with virt-dmem's kernel parameters?")
        removed = boot_reservation.remove_grub()
        out.note(f"Removed {path}. Run update-grub (or grub2-mkconfig), then reboot.")
    out.result(
        guest_memory_bytes=None, nodes=[], hvo=None, options=[], warnings=[], grub=str(path) if removed else None
    )
    return ExitStatus.DONE


def _line(out: Output, name: str, text: str) -> None:
    """Print text that is to be copied in one line, however long."""
    if text:
        out.text(f"  {name + ':':<21}{text}")


def _paragraph(out: Output, text: str) -> None:
    import shutil
    import sys
    import textwrap

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _MOST_COLUMNS
    width = min(columns, _MOST_COLUMNS)
    out.text(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


COMMANDS = (
    Command(
        "plan-host",
        "recommend a kind of memory for guests, with the boot settings that it needs",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        columns=_COLUMNS,
        answer="PlanHostAnswer",
    ),
)
