# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring ledger, pools and live domains together again after something died.

Reality wins: what a process maps stays, whatever the ledger says. Two stages: ``from_host`` needs pools,
ledger and the kernel alone and runs before the daemon is ready; ``from_libvirt`` runs whenever libvirt
appears, with all its active domains listed anew. Each returns a sentence for everything it did (with
``dry_run``: would do).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState
from virt_dmem.allocation.plan import NO_NODE
from virt_dmem.attempts import Round
from virt_dmem.config.schema import Config
from virt_dmem.deadline import within
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.hooks import Lifecycle
from virt_dmem.errors import Delayed
from virt_dmem.host import processes
from virt_dmem.host.dirfd import shown
from virt_dmem.hypervisor import processes as qemu_processes
from virt_dmem.hypervisor.paths import dangling_links, remove_dangling
from virt_dmem.pools import extent_files, segment_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.stuck_threads import each
from virt_dmem.units import format_size

__all__ = ["Reality", "from_host", "from_libvirt"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_MOST_NAMED = 20
"""Of links that are removed: whoever plants thousands is not to fill the log."""


@dataclass(frozen=True)
class Reality:
    """What is reconciled with each other, and how: each item by itself; what fails is in ``tries``."""

    config: Config
    ledger: Ledger
    inventory: Inventory
    lifecycle: Lifecycle
    mender: DeviceReconciler
    boot_id: str
    tries: Round
    dry_run: bool = False


async def from_host(now: Reality) -> list[str]:
    """Mend what can be told without libvirt: earlier boots, interrupted preparations, files and links of nobody."""
    actions: list[str] = []
    with now.tries.trying("the ledger's rows of earlier boots"):
        actions += _forget_earlier_boots(now)
    with now.tries.trying("records of pools"):
        _look_for_damage(now)
    with now.tries.trying("interrupted preparations"):
        actions += await _free_interrupted(now)
    with now.tries.trying("memory devices"):
        actions += await now.mender.mend_host(now.tries, dry_run=now.dry_run)
    held: set[str] = set()
    for name in now.inventory.usable():
        with now.tries.trying(f"pool {name}"):
            actions += await _segment(now, name)
            held.update(now.ledger.sizes_in(name))
    now.lifecycle.reclaim.forget_enlarged(held)
    with now.tries.trying("links in libvirt's directories"):
        actions += await _remove_dangling_links(now)
    if not now.dry_run:
        with now.tries.trying("quarantined extents"):
            actions += [
                f"free {format_size(extent.size_bytes)} at {extent.path}: nobody maps it now"
                for extent in await now.lifecycle.retry_quarantined(now.tries)
            ]
    return actions


def _look_for_damage(now: Reality) -> None:
    now.inventory.reload_if_damaged()
    for path, why in now.inventory.damaged().items():
        with now.tries.trying(path):
            raise why


async def _free_interrupted(now: Reality) -> list[str]:
    actions = []
    for reservation in now.ledger.interrupted(now.boot_id):
        if now.lifecycle.is_serving(reservation.uuid):  # a start that goes on
            continue
        with now.tries.trying(f"domain {reservation.uuid}"):
            if not now.dry_run:
                await now.lifecycle.abandon(reservation)
            actions.append(
                f"free {format_size(reservation.size_bytes)} of {reservation.name}:"
                f" interrupted while {reservation.phase.value}"
            )
    return actions


async def _remove_dangling_links(now: Reality) -> list[str]:
    """Remove links into pools that lead to nothing; what their directories' owner does about it stops nobody."""
    config = now.config

    def sweep() -> list[Path]:
        links = dangling_links(config.libvirt, config.pools_dir)
        return links if now.dry_run else remove_dangling(links, config.pools_dir)

    links = await within(sweep, "the links in memory_backing_dir", seconds=_SWEEP_SECONDS)
    more = [f"remove {len(links) - _MOST_NAMED} links more that lead to nothing"] if links[_MOST_NAMED:] else []
    return [f"remove the link {shown(link)}: what it leads to is gone" for link in links[:_MOST_NAMED]] + more


async def from_libvirt(now: Reality, active: Collection[str], listed_at: int) -> list[str]:
    """Free what is held for domains that do not run; come to an end with what was attached or detached.

    A domain is active for libvirt from before its ``prepare`` hook on (``qemuProcessInit`` gives it its id).

    :param active: UUIDs of the domains that libvirt called active.
    :param listed_at: The ledger's moment when libvirt was asked; what changed since then is left alone.
    """
    actions = []
    for reservation in list(now.ledger.reservations()):
        with now.tries.trying(f"domain {reservation.uuid}"):
            if reservation.uuid in active:
                actions += await now.mender.mend(reservation.uuid, dry_run=now.dry_run)
                continue
            if reservation.sequence > listed_at or now.lifecycle.is_serving(reservation.uuid):
                continue
            if not now.dry_run:
                await now.lifecycle.abandon(reservation)
            actions.append(
                f"free {format_size(reservation.size_bytes)} of {reservation.name}: the domain does not run"
            )
    return actions


def _forget_earlier_boots(now: Reality) -> list[str]:
    actions, ledger = [], now.ledger
    stale = {item.segment for item in ledger.quarantined() if item.boot_id != now.boot_id}
    for extent in ledger.quarantined():
        if extent.boot_id != now.boot_id and not now.dry_run:
            ledger.forget_extent(extent)
    if stale:
        actions.append(f"forget quarantined extents of an earlier boot in {', '.join(sorted(stale))}")
    for reservation in ledger.of_other_boots(now.boot_id):
        actions.append(f"forget the reservation of {reservation.name}: its memory went with an earlier boot")
        if not now.dry_run:
            for extent in reservation.extents:
                ledger.forget_extent(extent)
            ledger.forget(reservation.uuid)
    return actions


async def _segment(now: Reality, name: SegmentId) -> list[str]:
    """Hold the files of a segment against the ledger: those of nobody, those too large, and memory in no file."""
    record = now.inventory.record(name)
    if not Path(record.mount).is_mount():
        return []
    use = await asyncio.to_thread(segment_files.scan, record.mount)
    held = now.ledger.sizes_in(name)  # asked after that: a file that is there has had its row before
    actions = []
    for path in sorted(_of_domains(use.files, record.mount) - held.keys()):
        with now.tries.trying(path):
            actions += await _stranger(now, record, Path(path))
    if not now.dry_run:
        actions += await now.lifecycle.reclaim.truncate_enlarged(name, use, held, now.tries)
        # what was removed or cut may be pinned, and was in a file when they were looked at
        await now.lifecycle.reclaim.audit(name, None if actions else use)
    return actions + await _charge_what_is_had(now, name)


async def _charge_what_is_had(now: Reality, segment: SegmentId) -> list[str]:
    """Charge what a QEMU has of a memory device beyond its charge: the file is large enough for all it may get.

    That is not given to others any more, whatever libvirt and the guest say that it has.
    """
    actions = []
    for extent in now.ledger.charged_in_part(segment):
        with now.tries.trying(str(extent.path)), contextlib.suppress(FileNotFoundError):
            had_bytes = min(extent.size_bytes, segment_files.use_of(extent.path).held_bytes)
            more_bytes = had_bytes - extent.charged_bytes
            if more_bytes <= 0:
                continue
            if not now.dry_run:
                shares = dict(extent.shares)
                first = next(iter(shares), min(now.inventory.nodes(segment)))
                now.ledger.recharge(extent, shares | {first: shares.get(first, 0) + more_bytes})
            actions.append(f"charge {format_size(more_bytes)} more at {extent.path}: its QEMU has it")
    if actions and not now.dry_run:
        await now.lifecycle.prezero.evict(segment)
    return actions


def _of_domains(paths: Iterable[str], mount: str) -> set[str]:
    start = f"{mount}/libvirt-"
    return {path for path in paths if path.startswith(start)}


async def _stranger(now: Reality, record: PoolRecord, path: Path) -> list[str]:
    """Charge a file that no row of the ledger knows and a process maps; remove one that nobody has open."""
    if path.is_symlink() or not path.is_file():
        return []
    if not await within(partial(extent_files.in_use, path), f"extent {path}"):
        if not now.dry_run:
            await asyncio.to_thread(extent_files.remove, path)
        return [f"remove {path}: no reservation knows it"]
    nodes = set(now.inventory.nodes(record.segment))
    find = partial(_foundling, path, record, now.boot_id, nodes)
    try:
        extent, domain = await within(find, f"the processes that map {path}")
    except Delayed as delay:  # it is charged all the same
        log.warning("%s", delay)
        extent, domain = find(mappers=())
    holder = f"the running domain {domain}" if domain else "no domain; kept until nobody maps it"
    if not now.dry_run:
        now.ledger.adopt(extent, domain)
    return [f"charge {format_size(extent.size_bytes)} at {path}, which the ledger had lost, to {holder}"]


def _foundling(
    path: Path, record: PoolRecord, boot_id: str, nodes: set[int], *, mappers: tuple[int, ...] | None = None
) -> tuple[Extent, str]:
    """Return what a file in use must have been, and the name of its domain (empty: its QEMU is not there).

    ``mappers``: the processes (PIDs) to ask about it; ``None``: all that map it. For worker threads, unless empty.
    """
    file = extent_files.file_id(path)
    size_bytes = path.stat().st_size
    uuid = path.parent.name.removeprefix("libvirt-")
    pids = processes.processes_mapping(file.device, file.inode) if mappers is None else mappers
    domains = dict(domain for _, domain in each(qemu_processes.qemu_domain, pids) if domain)
    shares = dict.fromkeys(sorted(nodes), 0)
    known = backend(record.backend).bytes_by_node(path, pids)
    shares |= {node: size for node, size in known.items() if node in nodes}
    # what nobody has touched yet is on the pool's nodes too: by default on the first
    shares[min(nodes)] += size_bytes - sum(shares.values())
    extent = Extent(
        id=0,
        uuid=uuid,
        alias=path.name.split("+")[0],
        segment=record.segment,
        path=path,
        size_bytes=size_bytes,
        page_size=record.page_size,
        policy="none" if NO_NODE in nodes else "bind",
        state=ExtentState.POPULATED if uuid in domains else ExtentState.QUARANTINED,
        boot_id=boot_id,
        link="",
        shares={node: size for node, size in shares.items() if size > 0},
    )
    return extent, domains.get(uuid, "")
