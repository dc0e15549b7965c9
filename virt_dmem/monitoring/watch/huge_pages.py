# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the number of huge pages of each size and node: the kernel takes those beyond it when they are freed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.monitoring.alert_codes import HUGE_PAGES_LOWERED
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools import registry
from virt_dmem.pools.backends import page_counts
from virt_dmem.pools.backends.page_counts import PageCount
from virt_dmem.pools.lock import unless_locked
from virt_dmem.text import counted
from virt_dmem.units import format_size

__all__ = ["deviations"]


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield each size and node that has fewer persistent huge pages than pools took there, or surplus ones."""
    for count in page_counts.compare(sight.records, root=sight.root):
        subject = f"{format_size(count.page_size)} pages of node {count.node}"
        if count.lacking > 0:
            repair = partial(_repair, sight.config, count.page_size, count.node, sight.root)
            yield Deviation(HUGE_PAGES_LOWERED, subject, _lowered(count), _hint(count), repair)
        elif count.has.surplus:
            yield Deviation(HUGE_PAGES_LOWERED, subject, _surplus(count), _hint(count))


def _owners(count: PageCount) -> str:
    return f"pool{'s' if len(count.pools) > 1 else ''} {', '.join(count.pools)}"


def _lowered(count: PageCount) -> str:
    lowered = (
        f"Somebody lowered the number of {format_size(count.page_size)} pages of node {count.node} to"
        f" {count.has.persistent}, where {_owners(count)} took {count.recorded}:"
    )
    if count.gone:
        return f"{lowered} {format_size(count.gone * count.page_size)} of them are gone."
    return f"{lowered} the next {count.has.surplus} that are freed go to the kernel, even if a guest frees them."


def _surplus(count: PageCount) -> str:
    return (
        f"Others use {count.has.surplus} surplus pages of {format_size(count.page_size)} on node {count.node}:"
        f" meanwhile pages that guests of {_owners(count)} give back go to the kernel, and a guest that needs"
        " such a page again is killed."
    )


def _hint(count: PageCount) -> str:
    if count.lacking <= 0:
        return (
            "Set vm.nr_overcommit_hugepages to 0, and give the others as many persistent pages as they need; until"
            " then start no guest with free-page reporting on these pools."
        )
    commands = " and ".join(f"'virt-dmem pool mount {pool}'" for pool in count.pools)
    return (
        f"Run {commands}, which takes them again. Find out what sets vm.nr_hugepages"
        " (grep -r hugepages /etc/sysctl.d /etc/tuned /etc/libvirt/hooks), and let it count"
        f" the {counted(count.recorded, 'page')} of the pools too."
    )


def _repair(config: Config, page_size: int, node: int, root: Path) -> None:
    """Make the pages of pools persistent again, by their records of this moment, unless a pool is being changed."""
    with unless_locked(config) as mine:
        if not mine:
            return
        for count in page_counts.compare(registry.complete(config), root=root):
            if (count.page_size, count.node) == (page_size, node):
                page_counts.restore(count, root=root)
