# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the NUMA nodes: which are online, and the memory and processors of each. Sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virt_dmem.host.kernel import ROOT, Memory, memory, parse_meminfo

__all__ = ["Node", "parse_list", "nodes", "nodes_with_memory", "nodes_without_cpus", "node_memory"]


@dataclass(frozen=True)
class Node:
    """A NUMA node that is online; one without memory has ``memory.total_bytes`` 0."""

    node: int
    cpus: tuple[int, ...]
    memory: Memory


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a kernel list such as ``0,2-3``."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def nodes(*, root: Path = ROOT) -> tuple[Node, ...]:
    """Return the nodes that are online; a kernel built without NUMA has one node 0.

    A single node gets the memory of the host, which is more exact, and correct also while the kernel is still
    initialising memory (deferred struct pages) that the node's own MemTotal does not count yet.
    """
    base = root / "sys/devices/system/node"
    try:
        online = parse_list((base / "online").read_text())
    except FileNotFoundError:
        cpus = parse_list((root / "sys/devices/system/cpu/online").read_text())
        return (Node(0, cpus, memory(root=root)),)
    return tuple(
        Node(
            node,
            parse_list((base / f"node{node}/cpulist").read_text()),
            node_memory(node, root=root) if len(online) > 1 else memory(root=root),
        )
        for node in online
    )


def nodes_with_memory(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the nodes that have memory; a kernel built without NUMA has one node 0."""
    try:
        return parse_list((root / "sys/devices/system/node/has_memory").read_text())
    except FileNotFoundError:
        return (0,)


def nodes_without_cpus(*, root: Path = ROOT) -> frozenset[int]:
    """Return the nodes whose memory is far from every CPU, such as CXL memory."""
    base = root / "sys/devices/system/node"
    try:
        online, with_cpus = (parse_list((base / name).read_text()) for name in ("online", "has_cpu"))
    except FileNotFoundError:
        return frozenset()
    return frozenset(online) - frozenset(with_cpus)


def node_memory(node: int, *, root: Path = ROOT) -> Memory:
    """Return the memory of a node from its own counters.

    They have no MemAvailable; it is computed as free memory plus page cache and slab that can be reclaimed.
    """
    found = parse_meminfo(root / f"sys/devices/system/node/node{node}/meminfo")
    reclaimable = sum(found.get(key, 0) for key in ("Active(file)", "Inactive(file)", "SReclaimable"))
    return Memory(found["MemTotal"], found["MemFree"], found["MemFree"] + reclaimable)
