# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe how a host could provide guest memory: one option for each backend and page size. Pure.

Kernel parameters: ``Documentation/admin-guide/kernel-parameters.txt`` of Linux; the node format
(``hugepages=0:N,1:M``) needs Linux 5.16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from virt_dmem.host.ram.ranges import Range
from virt_dmem.pools.backends.struct_pages import BASE_PAGE, struct_pages_of
from virt_dmem.units import GIB, KIB, MIB, TIB

__all__ = ["HostFacts", "HostOption", "Probe", "by_node_options", "exact_size", "host_option", "per_node", "shares"]


@dataclass(frozen=True)
class Probe:
    """Whether this host supports a backend; the reason says what is missing."""

    available: bool
    reason: str = ""


@dataclass(frozen=True)
class HostFacts:
    """The facts on which a plan depends; all sizes in bytes."""

    nodes: dict[int, int]
    """MemTotal of each node that has memory."""
    page_sizes: tuple[int, ...]
    """Of huge pages, smallest first."""
    hvo: bool | None
    """Whether HVO is switched on; ``None`` where the kernel has none."""
    cma_bytes: int | None
    """Size of the kernel's contiguous memory area; ``None`` without CONFIG_CMA."""
    ram: dict[int, tuple[Range, ...]] = field(default_factory=dict)
    """Addresses of each node's memory; empty where they are not known."""
    in_memory_map: tuple[Range, ...] = ()
    """What the kernel counts for ``mem=``; empty where addresses are not known."""
    architecture: str = "x86_64"
    base_page: int = BASE_PAGE
    """The page size of the kernel."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """Which backends this host supports, by name; one that is not named has not been probed."""

    def probe(self, backend: str) -> Probe:
        """Return whether this host supports a backend."""
        return self.probes.get(backend, Probe(available=False, reason=f"support for {backend} was not found"))


@dataclass(frozen=True)
class HostOption:
    """One kind of memory; ``gross_bytes`` = ``metadata_left_bytes`` + ``net_bytes``."""

    backend: str
    page_size: int
    size_bytes: int
    """The guests' memory in whole pages."""
    gross_bytes: int
    """Struct pages that an ordinary host keeps for it."""
    metadata_left_bytes: int
    """Struct pages that remain."""
    net_bytes: int
    """Struct pages saved."""
    kernel_command_line: str
    """Parameters to add to it; empty: none."""
    pool_create: str
    """The command that creates the pool; empty where this version, or this kernel, cannot create one."""
    notes: tuple[str, ...]
    recommended: bool = False
    reason: str = ""
    """Why it is recommended here."""


def host_option(
    backend: str,
    size: int,
    page_size: int,
    *,
    left: int,
    line: str = "",
    pool_create: str = "",
    notes: list[str],
    base_page: int = BASE_PAGE,
) -> HostOption:
    """Return an option for ``size`` bytes of guest memory, of whose struct pages ``left`` bytes remain."""
    gross = struct_pages_of(size, base_page)
    return HostOption(backend, page_size, size, gross, left, gross - left, line, pool_create, tuple(notes))


def shares(size: int, unit: int, facts: HostFacts) -> dict[int, int]:
    """Spread a size evenly over the nodes that have memory, in whole units, as 'pool create --size' does."""
    units, more = divmod(size // unit, len(facts.nodes))
    even = {node: (units + (at < more)) * unit for at, node in enumerate(sorted(facts.nodes))}
    return {node: share for node, share in even.items() if share}


def per_node(shares: dict[int, int], text: Callable[[int], object]) -> str:
    """Return a parameter's value: a single one for the host, or ``0:N,1:M`` where it has several nodes."""
    if set(shares) == {0}:
        return str(text(shares[0]))
    return ",".join(f"{node}:{text(share)}" for node, share in shares.items())


def by_node_options(shares: dict[int, int]) -> str:
    """Return the ``--node`` options of 'pool create' for these shares."""
    return " ".join(f"--node {node}={exact_size(share)}" for node, share in shares.items())


def exact_size(size_bytes: int) -> str:
    """Return a size as the kernel and 'pool create' read it, exact: ``160G``."""
    for factor, letter in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{letter}"
    return str(size_bytes)
