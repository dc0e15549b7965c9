# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pool and which host nodes each memory backend of a domain takes its memory from.

Pure and deterministic: the same domain and the same free memory always give the same plan. A plan is whole or
refused, made of whole pages, and never takes more than is free on any node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from virt_dmem.domain_xml import Cell, DomainMemory, require_whole_pages
from virt_dmem.errors import NotEnoughMemory, PoolNotFound
from virt_dmem.units import format_size

__all__ = ["plan_domain", "Plan", "ExtentPlan", "PoolFree", "NO_NODE"]

NO_NODE = -1
"""Stands for the whole host in a pool whose backend knows no nodes."""


@dataclass(frozen=True)
class PoolFree:
    """What a pool has to give."""

    name: str
    backend: str
    page_size: int
    free_bytes: Mapping[int, int]
    """Node to bytes; ``NO_NODE`` alone where the backend has no nodes."""


@dataclass(frozen=True)
class ExtentPlan:
    """Where one memory backend's memory comes from."""

    alias: str
    pool: str
    size_bytes: int
    page_size: int
    policy: str
    """``bind``, ``interleave`` or ``preferred`` over ``nodes``; ``none`` where the pool has no nodes."""
    shares: tuple[tuple[int, int], ...]
    """Node and bytes it is charged with, each once and more than zero, together ``size_bytes``; in the order in
    which to take them: a preferred node comes first."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes of ``shares``; empty where the pool has none."""
        return tuple(node for node, _ in self.shares if node != NO_NODE)


@dataclass(frozen=True)
class Plan:
    """Where all memory of a domain comes from."""

    uuid: str
    name: str
    extents: tuple[ExtentPlan, ...]

    @property
    def total_bytes(self) -> int:
        """What the domain will be charged with in all."""
        return sum(extent.size_bytes for extent in self.extents)


def plan_domain(memory: DomainMemory, pools: Mapping[str, PoolFree], default_pool: str) -> Plan:
    """Return where each memory backend of ``memory`` finds its memory, in the order of its cells.

    Host nodes of ``<numatune>`` are kept to where the mode is strict, restrictive (one or more of them) or
    interleave (evenly over all of them); preferred ones are left only when they do not suffice. A backend
    without any goes to the one node that leaves the nodes most even, and over several only where it must.
    Without a pool of its own the domain gets ``default_pool``, without that the only one there is.

    :raise PoolNotFound: When there is no such pool, or more than one and no default.
    :raise DomainRefused: When a size is no multiple of the pool's page size.
    :raise NotEnoughMemory: Says what was asked, and what is free by node.
    """
    pool = _choose_pool(memory, pools, default_pool)
    require_whole_pages(memory.name, memory.cells, pool.page_size)
    free = {node: size - size % pool.page_size for node, size in sorted(pool.free_bytes.items()) if size > 0}
    if memory.total_bytes > sum(free.values()):
        raise _not_enough(memory, pool, None, free)
    extents = {}
    for cell in sorted(memory.cells, key=lambda cell: _freedom(cell, memory.cells)):
        shares = _place(cell, free, pool.page_size)
        if shares is None:
            raise _not_enough(memory, pool, cell, free)
        for node, size in shares.items():
            free[node] -= size
        extents[cell.alias] = ExtentPlan(
            alias=cell.alias,
            pool=pool.name,
            size_bytes=cell.size_bytes,
            page_size=pool.page_size,
            policy=_policy(cell, shares),
            shares=tuple(shares.items()),
        )
    return Plan(memory.uuid, memory.name, tuple(extents[cell.alias] for cell in memory.cells))


def _choose_pool(memory: DomainMemory, pools: Mapping[str, PoolFree], default_pool: str) -> PoolFree:
    name = memory.pool or default_pool
    if not name and len(pools) == 1:
        name = next(iter(pools))
    if name in pools:
        return pools[name]
    if name:
        raise PoolNotFound(
            f"Domain {memory.name!r} asks for memory of pool {name!r}, which is not there or not ready.",
            hint="'virt-dmem pool list' shows the pools of this host.",
        )
    raise PoolNotFound(
        f"Domain {memory.name!r} names no pool, and of {len(pools)} pools none is the default.",
        hint="Set default_pool in virt-dmem.toml, or 'virt-dmem apply --pool NAME DOMAIN'.",
    )


def _freedom(cell: Cell, cells: tuple[Cell, ...]) -> tuple[int, int, int, int]:
    """Order by how little choice a cell has, then the largest first: who can move makes room."""
    if not cell.host_nodes:
        kind = 3
    elif cell.policy == "preferred":
        kind = 2
    else:
        kind = int(len(cell.host_nodes) > 1 and cell.policy != "interleave")
    return kind, len(cell.host_nodes), -cell.size_bytes, cells.index(cell)


def _place(cell: Cell, free: Mapping[int, int], page_size: int) -> dict[int, int] | None:
    """Return node to bytes for ``cell``, None where it does not fit."""
    if NO_NODE in free:
        return _spread(cell.size_bytes, free, [NO_NODE])
    if not cell.host_nodes:
        return _spread(cell.size_bytes, free, free)
    if cell.policy == "interleave":
        return _interleave(cell, free, page_size)
    shares = _spread(cell.size_bytes, free, cell.host_nodes)
    if shares is None and cell.policy == "preferred":
        wanted = {node: free[node] for node in cell.host_nodes if free.get(node, 0) > 0}
        others = [node for node in free if node not in wanted]
        rest = _spread(cell.size_bytes - sum(wanted.values()), free, others)
        shares = None if rest is None else wanted | rest
    return shares


def _spread(size_bytes: int, free: Mapping[int, int], nodes: Iterable[int]) -> dict[int, int] | None:
    """Take ``size_bytes`` from one of ``nodes``, else from as few of them as will do."""
    allowed = {node: free[node] for node in sorted(nodes) if free.get(node, 0) > 0}
    fitting = [node for node, size in allowed.items() if size >= size_bytes]
    if fitting:
        return {min(fitting, key=lambda node: _imbalance(free, node, size_bytes)): size_bytes}
    shares = {}
    for node in sorted(allowed, key=lambda node: -allowed[node]):
        shares[node] = min(size_bytes, allowed[node])
        size_bytes -= shares[node]
        if not size_bytes:
            return shares
    return None


def _imbalance(free: Mapping[int, int], node: int, size_bytes: int) -> int:
    left = {**free, node: free[node] - size_bytes}.values()
    return max(left) - min(left)


def _interleave(cell: Cell, free: Mapping[int, int], page_size: int) -> dict[int, int] | None:
    """Take turns page by page over all host nodes of ``cell``, the first nodes first, as the kernel does."""
    each, more = divmod(cell.size_bytes // page_size, len(cell.host_nodes))
    shares = {node: (each + (index < more)) * page_size for index, node in enumerate(cell.host_nodes)}
    fits = all(size <= free.get(node, 0) for node, size in shares.items())
    return {node: size for node, size in shares.items() if size} if fits else None


def _policy(cell: Cell, shares: Mapping[int, int]) -> str:
    if NO_NODE in shares:
        return "none"
    if cell.host_nodes and cell.policy in ("interleave", "preferred"):
        return cell.policy
    return "bind"


def _not_enough(
    memory: DomainMemory, pool: PoolFree, cell: Cell | None, free: Mapping[int, int]
) -> NotEnoughMemory:
    if cell is None:
        asked, left = format_size(memory.total_bytes), "is free"
    else:
        nodes = f" on node {', '.join(map(str, cell.host_nodes))} ({cell.policy})" if cell.host_nodes else ""
        asked, left = f"{format_size(cell.size_bytes)} for {cell.alias}{nodes}", "is left for that"
    by_node = ", ".join(f"node {node}: {format_size(size)}" for node, size in free.items() if node != NO_NODE)
    return NotEnoughMemory(
        f"Domain {memory.name!r} asks pool {pool.name!r} for {asked}, and {format_size(sum(free.values()))} {left}"
        f"{f' ({by_node})' if by_node else ''}.",
        hint="Stop another domain, give this one less memory, or make the pool larger.",
    )
