# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare and check the options of 'pool create' that make a pool elastic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virt_dmem.errors import UsageError
from virt_dmem.pools.backends.host_options import exact_size
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.units import GIB, MIB, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    import argparse

__all__ = ["KEEP_FREE_LEAST", "add", "first_sizes", "limits", "reject"]

KEEP_FREE_LEAST = 256 * MIB
"""As much the host keeps of any pool of huge pages: beyond that the kernel would reclaim from every process."""
_KEEP_FREE = GIB
_LINGER_SECONDS = 600
_DEPENDENT = ("max", "min", "keep_free", "linger")


def add(parser: argparse.ArgumentParser) -> None:
    """Add ``--elastic`` and what belongs to it."""
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="take huge pages when a domain starts, and give them back after it (needs virt-dmem-pages.socket)",
    )
    parser.add_argument(
        "--max", type=parse_size, metavar="SIZE", help="the most that an elastic pool may have; required"
    )
    parser.add_argument(
        "--min", type=parse_size, metavar="SIZE", help="what an elastic pool always has; default: nothing"
    )
    parser.add_argument(
        "--keep-free",
        type=parse_size,
        metavar="SIZE",
        help="available memory that an elastic pool leaves to the host; default: 1G",
    )
    parser.add_argument(
        "--linger",
        type=_linger,
        metavar="TIME",
        help="how long an elastic pool keeps memory that no domain holds, such as 90s, 10m or 0; default: 10m",
    )


def _linger(text: str) -> int:
    """Return the seconds of a duration, which may be zero; minutes may also be written as ``10min``."""
    return 0 if text == "0" else parse_duration(text.removesuffix("in") if text.endswith("min") else text)


def reject(args: argparse.Namespace, backend: str) -> None:
    """Reject these options for a pool of another backend.

    :raise UsageError: When one is given.
    """
    if args.elastic or _given(args):
        raise UsageError(f"A {backend} pool cannot be elastic.", hint="Use --backend hugetlbfs, or omit --elastic.")


def _given(args: argparse.Namespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in _DEPENDENT if getattr(args, name) is not None]


def limits(args: argparse.Namespace, *, sized: bool) -> ElasticLimits | None:
    """Return the limits of an elastic pool; ``None``: the pool is to be a fixed one.

    :param sized: A size is given by other options.
    :raise UsageError: When the options contradict each other.
    """
    if not args.elastic:
        if given := _given(args):
            raise UsageError(
                f"{given[0]} is about elastic pools.", hint="Add --elastic, or give the pool a --size only."
            )
        return None
    if sized:
        raise UsageError(
            "An elastic pool has no fixed size.", hint="Give --max, and --min for what it always has, instead."
        )
    if args.existing_pages:
        raise UsageError(
            "An elastic pool takes no pages that the host has already: it could not give them back.",
            hint="Omit --existing-pages, or create a fixed pool of them.",
        )
    if args.max is None:
        raise UsageError("The most that the pool may have is missing.", hint="Give --max SIZE.")
    least = args.min or 0
    if least > args.max:
        raise UsageError(
            f"--min {format_size(least)} is more than --max {format_size(args.max)}.",
            hint="Choose a smaller minimum.",
        )
    keep_free = _KEEP_FREE if args.keep_free is None else args.keep_free
    if keep_free < KEEP_FREE_LEAST:
        raise UsageError(
            f"The host cannot be left with {format_size(keep_free)}.",
            hint=f"Give --keep-free {format_size(KEEP_FREE_LEAST)} or more.",
        )
    return ElasticLimits(args.max, least, keep_free, _LINGER_SECONDS if args.linger is None else args.linger)


def first_sizes(limits: ElasticLimits, page_size: int, nodes: Sequence[int]) -> dict[int, int]:
    """Return the bytes by node that an elastic pool always has: its minimum, spread evenly; 0 where it has none.

    :raise UsageError: When a limit is no whole number of pages.
    """
    for name, size in (("--max", limits.max_bytes), ("--min", limits.min_bytes)):
        if size % page_size:
            below = size // page_size * page_size
            nearest = [exact_size(at) for at in (below, below + page_size) if at]
            raise UsageError(
                f"{name} {size} bytes are not a whole number of pages of {format_size(page_size)}.",
                hint=f"The nearest size is {' or '.join(nearest)}.",
            )
    pages, more = divmod(limits.min_bytes // page_size, len(nodes))
    return {node: (pages + (at < more)) * page_size for at, node in enumerate(nodes)}
