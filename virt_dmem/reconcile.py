# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring ledger, pools and live domains together again after something died.

Reality wins: what a process maps stays, whatever the ledger says. Two stages: ``from_host`` needs pools,
ledger and the kernel alone and runs before the daemon is ready; ``from_libvirt`` runs whenever libvirt
appears, with all its active domains listed anew. Each returns a sentence for everything it did (with
``dry_run``: would do).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

from virt_dmem import extents, host
from virt_dmem.backends import backend
from virt_dmem.beneath import shown
from virt_dmem.config import Config
from virt_dmem.errors import Delayed
from virt_dmem.inventory import Inventory
from virt_dmem.ledger import Ledger
from virt_dmem.libvirt_dirs import dangling_links, remove_dangling
from virt_dmem.lifecycle import Lifecycle
from virt_dmem.mending import Mender
from virt_dmem.patience import each, within
from virt_dmem.plan import NO_NODE
from virt_dmem.pools import PoolRecord
from virt_dmem.records import Extent, ExtentState
from virt_dmem.units import format_size

__all__ = ["from_host", "from_libvirt"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_MOST_NAMED = 20
"""Of links that are removed: whoever plants thousands is not to fill the log."""


async def from_host(
    config: Config,
    ledger: Ledger,
    inventory: Inventory,
    lifecycle: Lifecycle,
    *,
    mender: Mender,
    boot_id: str,
    dry_run: bool = False,
) -> list[str]:
    """Mend what can be told without libvirt: earlier boots, interrupted preparations, files and links of nobody."""
    actions = _forget_earlier_boots(ledger, boot_id, dry_run=dry_run)
    for reservation in ledger.interrupted(boot_id):
        if lifecycle.is_serving(reservation.uuid):  # a start that goes on
            continue
        actions.append(
            f"free {format_size(reservation.size_bytes)} of {reservation.name}:"
            f" interrupted while {reservation.phase.value}"
        )
        if not dry_run:
            await lifecycle.abandon(reservation)
    actions += await mender.mend_host(dry_run=dry_run)
    actions += await _adopt_or_remove_strangers(ledger, inventory, boot_id, dry_run=dry_run)
    actions += await _remove_dangling_links(config, dry_run=dry_run)
    if not dry_run:
        freed = await lifecycle.retry_quarantined()
        actions += [
            f"free {format_size(extent.size_bytes)} at {extent.path}: nobody maps it now" for extent in freed
        ]
    return actions


async def from_libvirt(
    ledger: Ledger,
    lifecycle: Lifecycle,
    mender: Mender,
    active: Collection[str],
    listed_at: float,
    *,
    dry_run: bool = False,
) -> list[str]:
    """Free what is held for domains that do not run; come to an end with what was attached or detached.

    A domain is active for libvirt from before its ``prepare`` hook on (``qemuProcessInit`` gives it its id).

    :param active: UUIDs of the domains that libvirt called active.
    :param listed_at: When libvirt was asked (seconds since the epoch); what changed since then is left alone.
    """
    actions = []
    for reservation in list(ledger.reservations()):
        if reservation.uuid in active:
            actions += await mender.mend(reservation.uuid, dry_run=dry_run)
        if reservation.uuid in active or reservation.since >= listed_at or lifecycle.is_serving(reservation.uuid):
            continue
        actions.append(f"free {format_size(reservation.size_bytes)} of {reservation.name}: the domain does not run")
        if not dry_run:
            await lifecycle.abandon(reservation)
    return actions


def _forget_earlier_boots(ledger: Ledger, boot_id: str, *, dry_run: bool) -> list[str]:
    actions = []
    stale = {item.pool for item in ledger.quarantined() if item.boot_id != boot_id}
    for extent in ledger.quarantined():
        if extent.boot_id != boot_id and not dry_run:
            ledger.forget_extent(extent)
    if stale:
        actions.append(f"forget quarantined extents of an earlier boot in {', '.join(sorted(stale))}")
    for reservation in ledger.of_other_boots(boot_id):
        actions.append(f"forget the reservation of {reservation.name}: its memory went with an earlier boot")
        if not dry_run:
            for extent in reservation.extents:
                ledger.forget_extent(extent)
            ledger.forget(reservation.uuid)
    return actions


async def _remove_dangling_links(config: Config, *, dry_run: bool) -> list[str]:
    """Remove links into pools that lead to nothing; what their directories' owner does about it stops nobody."""

    def sweep() -> list[Path]:
        links = dangling_links(config.libvirt, config.pools_dir)
        return links if dry_run else remove_dangling(links, config.pools_dir)

    try:
        links = await within(sweep, "the links in memory_backing_dir", seconds=_SWEEP_SECONDS)
    except Delayed as delay:
        log.warning("%s", delay)
        return []
    more = [f"remove {len(links) - _MOST_NAMED} links more that lead to nothing"] if links[_MOST_NAMED:] else []
    return [f"remove the link {shown(link)}: what it leads to is gone" for link in links[:_MOST_NAMED]] + more


async def _adopt_or_remove_strangers(
    ledger: Ledger, inventory: Inventory, boot_id: str, *, dry_run: bool
) -> list[str]:
    """Charge files that no row of the ledger knows and a process maps; remove those that nobody has open."""
    actions = []
    for name, record in inventory.ready().items():
        there = await asyncio.to_thread(_files_of_domains, record.mount)
        # asked after that: a file that is there has had its row before
        for path in map(Path, sorted(there - ledger.paths_in(name))):
            if path.is_symlink() or not path.is_file():
                continue
            if not extents.in_use(path):
                actions.append(f"remove {path}: no reservation knows it")
                if not dry_run:
                    extents.remove(path)
                continue
            nodes = set(inventory.nodes(name))
            find = partial(_foundling, path, record, boot_id, nodes)
            try:
                extent, domain = await within(find, f"the processes that map {path}")
            except Delayed as delay:  # it is charged all the same
                log.warning("%s", delay)
                extent, domain = find(mappers=())
            holder = f"the running domain {domain}" if domain else "no domain; kept until nobody maps it"
            actions.append(
                f"charge {format_size(extent.size_bytes)} at {path}, which the ledger had lost, to {holder}"
            )
            if not dry_run:
                ledger.adopt(extent, domain)
    return actions


def _files_of_domains(mount: str) -> set[str]:
    """Return the paths of all files that domains have, or had, in a segment."""
    return {
        os.path.join(mount, directory, name)  # noqa: PTH118 -- a Path takes ten times as long, and there are many
        for directory in os.listdir(mount)  # noqa: PTH208
        if directory.startswith("libvirt-")
        for name in _names_in(os.path.join(mount, directory))  # noqa: PTH118
    }


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def _foundling(
    path: Path, record: PoolRecord, boot_id: str, nodes: set[int], *, mappers: tuple[int, ...] | None = None
) -> tuple[Extent, str]:
    """Return what a file in use must have been, and the name of its domain (empty: its QEMU is not there).

    ``mappers``: the processes (PIDs) to ask about it; ``None``: all that map it. For worker threads, unless empty.
    """
    file = extents.file_id(path)
    size_bytes = path.stat().st_size
    uuid = path.parent.name.removeprefix("libvirt-")
    pids = host.processes_mapping(file.device, file.inode) if mappers is None else mappers
    domains = dict(domain for _, domain in each(host.qemu_domain, pids) if domain)
    shares = dict.fromkeys(sorted(nodes), 0)
    known = backend(record.backend).bytes_by_node(path, pids)
    shares |= {node: size for node, size in known.items() if node in nodes}
    # what nobody has touched yet is on the pool's nodes too: by default on the first
    shares[min(nodes)] += size_bytes - sum(shares.values())
    extent = Extent(
        id=0,
        uuid=uuid,
        alias=path.name.split("+")[0],
        pool=record.name,
        path=path,
        size_bytes=size_bytes,
        page_size=record.page_size,
        policy="none" if NO_NODE in nodes else "bind",
        state=ExtentState.READY if uuid in domains else ExtentState.QUARANTINED,
        boot_id=boot_id,
        link="",
        shares={node: size for node, size in shares.items() if size > 0},
    )
    return extent, domains.get(uuid, "")
