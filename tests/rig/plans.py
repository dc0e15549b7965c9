# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans of domains for tests of the ledger."""

from __future__ import annotations

from pathlib import Path

from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["PAGE", "make_plan", "paths_of"]

PAGE = 2 << 20


def make_plan(number: int, *pages: tuple[int, int], segment: str = "fast") -> Plan:
    """Return a plan with one extent in a segment for each (node, pages)."""
    extents = tuple(
        ExtentPlan(f"ram-node{index}", SegmentId(segment), count * PAGE, PAGE, "bind", ((node, count * PAGE),))
        for index, (node, count) in enumerate(pages)
    )
    return Plan(uuid=f"uuid-{number}", name=f"guest{number}", extents=extents)


def paths_of(plan: Plan) -> dict[str, Path]:
    """Return a path for each extent of a plan."""
    return {
        extent.alias: Path("/pools", extent.segment, f"libvirt-{plan.uuid}", extent.alias)
        for extent in plan.extents
    }
