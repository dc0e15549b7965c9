# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare and read arguments that several commands take."""

from __future__ import annotations

from virt_dmem.errors import UsageError
from virt_dmem.text import clipped
from virt_dmem.units import format_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = [
    "add_domain",
    "add_pool",
    "add_dry_run",
    "add_hotplug_and_monitor",
    "add_sizes",
    "number",
    "positive",
    "size_or_zero",
    "sizes",
]

_MOST_DIGITS = 9
"""Of a number; int() refuses 4300."""


def add_domain(parser: argparse.ArgumentParser, help_text: str = "name or UUID") -> None:
    """Add the domain that a command is about."""
    parser.add_argument("domain", metavar="DOMAIN", help=help_text)


def add_pool(parser: argparse.ArgumentParser) -> None:
    """Add the name of the pool that a command is about."""
    parser.add_argument("name", metavar="NAME")


def add_dry_run(
    parser: argparse.ArgumentParser, help_text: str = "print what would be done, and change nothing"
) -> None:
    """Add ``--dry-run``."""
    parser.add_argument("--dry-run", action="store_true", help=help_text)


def add_hotplug_and_monitor(parser: argparse.ArgumentParser) -> None:
    """Add what a rewrite of domain XML can do beyond its memory backing."""
    parser.add_argument(
        "--hotplug-max",
        type=parse_size,
        metavar="SIZE",
        help="prepare the domain for memory hotplug, up to this total memory size",
    )
    parser.add_argument("--no-monitor", action="store_true", help="do not add a second monitor to QEMU")


def add_sizes(parser: argparse.ArgumentParser, size_help: str) -> None:
    """Add the size of a pool, in all and by node; ``sizes`` reads them."""
    parser.add_argument("--size", type=parse_size, metavar="SIZE", help=size_help)
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        type=_node_share,
        metavar="N=SIZE",
        help="size on node N (repeatable)",
    )


def sizes(args: argparse.Namespace) -> int | dict[int, int] | None:
    """Return the bytes of ``--size``, or those of ``--node`` by node; ``None`` where neither is given.

    :raise UsageError: When they contradict each other.
    """
    by_node: dict[int, int] = dict(args.node)
    if len(by_node) < len(args.node):
        raise UsageError("A node is given twice.", hint="Give --node once for each node.")
    if args.size is not None and by_node and args.size != sum(by_node.values()):
        raise UsageError(
            f"--size is {format_size(args.size)}, but the nodes add up to {format_size(sum(by_node.values()))}.",
            hint="Omit --size, or make the two agree.",
        )
    return by_node or args.size


def number(text: str) -> int:
    """Return the number of a node or cell."""
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise UsageError(f"{clipped(text, 80)!r} is not the number of a node or cell.", hint="They count from 0.")
    return int(text)


def positive(text: str) -> int:
    """Return a number of things, at least one."""
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        raise UsageError(
            f"{clipped(text, 80)!r} is not a number of 1 or more.", hint="Write it in digits, such as 10."
        )
    return int(text)


def size_or_zero(text: str) -> int:
    """Return the bytes that ``text`` means, which may be zero."""
    return 0 if text == "0" else parse_size(text)


def _node_share(text: str) -> tuple[int, int]:
    node, equals, size = text.partition("=")
    if not equals:
        raise UsageError(
            f"{clipped(text, 80)!r} is not a node and its size.",
            hint="Write the node and its size, such as --node 0=4G.",
        )
    return number(node), size_or_zero(size)
