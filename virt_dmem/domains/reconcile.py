# SPDX-License-Identifier: GPL-2.0-or-later
"""Reconcile the ledger with pools and running domains after a crash.

The kernel has the last word: memory that a process maps stays, whatever the ledger says. Two stages: ``from_host``
needs pools, ledger and the kernel alone and runs before the daemon is ready; ``from_libvirt`` runs whenever libvirt
appears, with a new list of its active domains. While all live, ``doubtful`` ones are settled by ``with_libvirt``,
as their hooks may have failed: a disk was full, or the hook's program could not run. Each returns a sentence for
every action (with ``dry_run``: that would be done).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, Parked, ParkedStep, Phase, Reservation
from virt_dmem.allocation.plan import NO_NODE
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import name_of
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.parked import state_files
from virt_dmem.domains.parked.refusals import file_gone
from virt_dmem.errors import Delayed, ExtentError, HypervisorError, LedgerError
from virt_dmem.host import processes
from virt_dmem.host.dirfd import shown
from virt_dmem.host.kernel import uptime
from virt_dmem.hypervisor import dead_monitors
from virt_dmem.hypervisor import processes as qemu_processes
from virt_dmem.hypervisor.paths import dangling_links, remove_dangling
from virt_dmem.hypervisor.saved_state import read_saved_state
from virt_dmem.pools import extent_files, segment_files
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.attempts import Round
from virt_dmem.runtime.deadline import within
from virt_dmem.runtime.stuck_threads import each
from virt_dmem.units import format_size

__all__ = ["ReconcileContext", "doubtful", "from_host", "from_libvirt", "item_of", "with_libvirt"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_MOST_NAMED = 20
"""Of removed links: thousands, planted on purpose, must not fill the log."""
_DOUBT_SECONDS = 5.0
"""A domain that is in a phase of its start for longer may never leave it, but may as well take that long."""
_SILENCE_SECONDS = 60.0
"""libvirt answers nothing about a domain while it starts QEMU, or a hook of anyone runs: seconds, rarely more."""


@dataclass(frozen=True)
class ReconcileContext:
    """The parts to reconcile, and how: each item by itself; ``attempts`` keeps those that failed."""

    config: Config
    ledger: Ledger
    inventory: Inventory
    extents: ExtentManager
    devices: DeviceReconciler
    boot_id: str
    attempts: Round
    dry_run: bool = False
    settle: Callable[[str], Awaitable[list[str]]] | None = None
    """Finds out what became of a domain (UUID) that is parked or unparked."""


async def from_host(context: ReconcileContext) -> list[str]:
    """Reconcile without libvirt: rows of earlier boots, interrupted starts, files and links without a domain."""
    actions: list[str] = []
    with context.attempts.trying("the ledger's rows of earlier boots"):
        actions += _forget_earlier_boots(context)
    with context.attempts.trying("records of pools"):
        _report_damaged_records(context)
    with context.attempts.trying("interrupted preparations"):
        actions += await _free_interrupted(context)
    with context.attempts.trying("memory devices"):
        actions += await context.devices.reconcile_host(context.attempts, dry_run=context.dry_run)
    held: set[str] = set()
    for name in context.inventory.usable():
        with context.attempts.trying(f"pool {name}"):
            actions += await _reconcile_segment(context, name)
            held.update(context.ledger.sizes_in(name))
    context.extents.reclaim.forget_enlarged(held)
    with context.attempts.trying("links in libvirt's directories"):
        actions += await _remove_dangling_links(context)
    with context.attempts.trying("monitors of domains that have ended"):
        actions += await _remove_dead_monitors(context)
    if not context.dry_run:
        with context.attempts.trying("quarantined extents"):
            actions += [
                f"free {format_size(extent.size_bytes)} at {extent.path}: no process maps it now"
                for extent in await context.extents.retry_quarantined(context.attempts)
            ]
    return actions


def _report_damaged_records(context: ReconcileContext) -> None:
    context.inventory.reload_if_damaged()
    for path, why in context.inventory.damaged().items():
        with context.attempts.trying(path):
            raise why


async def _free_interrupted(context: ReconcileContext) -> list[str]:
    async def free(reservation: Reservation) -> list[str]:
        if context.extents.is_locked(reservation.uuid):  # a start that goes on
            return []
        return await _free(context, reservation, f"interrupted while {reservation.phase.value}")

    interrupted = {held.uuid: held for held in context.ledger.interrupted(context.boot_id)}
    return await _each_domain(context, interrupted, lambda uuid: free(interrupted[uuid]))


async def _free(context: ReconcileContext, reservation: Reservation, why: str) -> list[str]:
    if not context.dry_run:
        await context.extents.release_abandoned(reservation)
    return [f"free {format_size(reservation.size_bytes)} of {reservation.name}: {why}"]


async def _each_domain(
    context: ReconcileContext, uuids: Iterable[str], reconcile: Callable[[str], Awaitable[list[str]]]
) -> list[str]:
    """Reconcile each domain by itself; where the ledger cannot be written at all, only the first is tried."""
    actions: list[str] = []
    unavailable: LedgerError | None = None
    for uuid in uuids:
        with context.attempts.trying(item_of(uuid)):
            if unavailable:
                raise unavailable
            try:
                actions += await reconcile(uuid)
            except LedgerError as error:
                unavailable = error if error.is_unavailable else None
                raise
    return actions


def item_of(uuid: str) -> str:
    """Return the name of a domain among the items that are tried."""
    return f"domain {uuid}"


async def _remove_dangling_links(context: ReconcileContext) -> list[str]:
    """Remove dangling links into pools, in spite of anything that the owner of their directory does."""
    config = context.config

    def sweep() -> list[Path]:
        links = dangling_links(config.libvirt, config.pools_dir)
        return links if context.dry_run else remove_dangling(links, config.pools_dir)

    links = await within(sweep, "the links in memory_backing_dir", seconds=_SWEEP_SECONDS)
    more = [f"remove {len(links) - _MOST_NAMED} more dangling links"] if links[_MOST_NAMED:] else []
    return [f"remove the link {shown(link)}: its target is gone" for link in links[:_MOST_NAMED]] + more


async def _remove_dead_monitors(context: ReconcileContext) -> list[str]:
    """Remove the monitors' sockets that no QEMU listens on, of domains that hold no memory."""
    found = await within(dead_monitors.found, "the directory of monitors", seconds=_SWEEP_SECONDS)
    left = found - context.ledger.phases().keys()
    if not left:
        return []
    remove = partial(dead_monitors.remove_unbound, left, dry_run=context.dry_run)
    gone = await within(remove, "the sockets of monitors", seconds=_SWEEP_SECONDS)
    more = [f"remove {len(gone) - _MOST_NAMED} more monitors"] if gone[_MOST_NAMED:] else []
    return [f"remove the monitor of domain {uuid}: its QEMU is gone" for uuid in gone[:_MOST_NAMED]] + more


async def from_libvirt(context: ReconcileContext, active: Collection[str], listed_at: int) -> list[str]:
    """Free the memory of domains that do not run, and reconcile the memory devices of those that do.

    A domain is active for libvirt from before its ``prepare`` hook on (``qemuProcessInit`` gives it its id).

    :param active: UUIDs of the domains that libvirt called active.
    :param listed_at: The ledger's sequence number when libvirt was asked; what changed since is left alone.
    """
    held = {reservation.uuid: reservation for reservation in context.ledger.reservations()}
    actions = await _each_domain(
        context, held, lambda uuid: _reconcile_domain(context, held[uuid], listed_at, active=uuid in active)
    )
    with context.attempts.trying("monitors of domains that do not run"):
        actions += await _remove_dead_monitors(context)
    return actions


async def _reconcile_domain(
    context: ReconcileContext, reservation: Reservation, asked_at: int, *, active: bool
) -> list[str]:
    """Free the memory of a domain that libvirt does not call active, or reconcile its memory devices.

    :param asked_at: The ledger's sequence number when libvirt was asked; what changed since is left alone.
    """
    if parked := context.ledger.parked(reservation.uuid):
        if is_settled(parked, reservation.phase) or context.dry_run or context.settle is None:
            return []
        return await context.settle(reservation.uuid)
    if active:
        return await context.devices.reconcile_domain(reservation.uuid, dry_run=context.dry_run)
    if reservation.sequence > asked_at or context.extents.is_locked(reservation.uuid):
        return []
    if reservation.phase in (Phase.PREPARED, Phase.LINKED):  # its QEMU may be about to open the files
        run_dir = Path(context.config.libvirt.run_dir)
        find = partial(qemu_processes.find_qemu, run_dir, reservation.name, reservation.uuid)
        if pid := await within(find, f"QEMU of {reservation.name}", of=reservation.uuid):
            raise ExtentError(
                f"QEMU {pid} of domain {reservation.name} is starting, and libvirt does not know it.",
                hint=f"End that process; {format_size(reservation.size_bytes)} stay reserved until then.",
            )
    return await _free(context, reservation, "the domain is not running")


def is_settled(parked: Parked, phase: Phase) -> bool:
    """Return whether a parked domain just waits to be unparked."""
    return parked.step is ParkedStep.PARKED and phase is Phase.PARKED


def doubtful(context: ReconcileContext, running: Collection[str]) -> set[str]:
    """Return the domains (UUID) that may have ended, or whose attach has, without that being recorded.

    :param running: Those of which libvirt reported a start, and no end since.
    """
    now, parked = uptime(), context.ledger.all_parked()
    return context.devices.abandoned() | {
        uuid
        for uuid, change in context.ledger.phases().items()
        if (uuid not in running or change.phase is not Phase.RUNNING or uuid in parked)
        and not (uuid in parked and is_settled(parked[uuid], change.phase))
        and now - change.uptime > _DOUBT_SECONDS
        and not context.extents.is_locked(uuid)
    }


async def with_libvirt(
    context: ReconcileContext, uuids: Iterable[str], is_active: Callable[[str], Awaitable[bool | None]]
) -> list[str]:
    """Reconcile some domains, asking libvirt about each of them.

    :param is_active: Returns whether libvirt calls a domain active; ``None``: it does not answer.
    """

    async def ask(uuid: str) -> list[str]:
        asked_at, change = context.ledger.sequence(), context.ledger.phases().get(uuid)
        active = await is_active(uuid)
        reservation = context.ledger.find(uuid)
        if reservation is None or change is None:
            return []
        if active is not None:
            return await _reconcile_domain(context, reservation, asked_at, active=active)
        if uptime() - change.uptime > _SILENCE_SECONDS:
            raise HypervisorError(
                f"libvirt does not answer whether domain {reservation.name} runs.",
                hint="A hook or a job of that domain does not end; its memory stays reserved until it does.",
            )
        return []

    return await _each_domain(context, uuids, ask)


def _forget_earlier_boots(context: ReconcileContext) -> list[str]:
    actions, ledger = [], context.ledger
    stale = {item.segment for item in ledger.quarantined() if item.boot_id != context.boot_id}
    for extent in ledger.quarantined():
        if extent.boot_id != context.boot_id and not context.dry_run:
            ledger.forget_extent(extent)
    if stale:
        actions.append(f"forget quarantined extents of an earlier boot in {', '.join(sorted(stale))}")
    for reservation in ledger.of_other_boots(context.boot_id):
        parked = ledger.parked(reservation.uuid)
        if parked and (survived := _has_survived(context, reservation)) is not False:
            if survived and not context.dry_run:
                ledger.keep_over_boot(reservation.uuid)
                ledger.set_phase(reservation.uuid, Phase.PARKED)
            continue
        actions.append(f"forget the reservation of {reservation.name}: its memory went with an earlier boot")
        if not context.dry_run:
            if parked:
                parked.state_file.unlink(missing_ok=True)
                ledger.forget_parked(reservation.uuid)
            for extent in reservation.extents:
                ledger.forget_extent(extent)
            ledger.forget(reservation.uuid)
    return actions


def _has_survived(context: ReconcileContext, reservation: Reservation) -> bool | None:
    """Return whether the memory of a parked domain is there after a reboot; ``None``: its pool is not yet."""
    for extent in reservation.extents:
        record = context.inventory.usable().get(extent.segment)
        if record is None or not Path(record.mount).is_mount():
            return None
        if not extent.path.is_file() or extent.path.stat().st_size < extent.size_bytes:
            return False
    return True


async def _reconcile_segment(context: ReconcileContext, name: SegmentId) -> list[str]:
    """Compare a segment with the ledger: files without a row, files too large, and memory in no file."""
    record = context.inventory.record(name)
    if not Path(record.mount).is_mount():
        return []
    use = await asyncio.to_thread(segment_files.scan, record.mount)
    held = context.ledger.sizes_in(name)  # read after that: the row of a file is written before the file
    actions = []
    _require_files(context, name, held.keys() - use.files.keys())
    for path in sorted(_files_of_domains(use.files, record.mount) - held.keys()):
        with context.attempts.trying(path):
            actions += await _reconcile_unknown_file(context, record, Path(path))
    if not context.dry_run:
        actions += await context.extents.reclaim.truncate_enlarged(name, use, held, context.attempts)
        # removed or cut memory may be pinned, and was in a file when they were listed
        await context.extents.reclaim.audit(name, None if actions else use)
    return actions + await _charge_mapped_excess(context, name)


def _require_files(context: ReconcileContext, segment: SegmentId, missing: Set[str]) -> None:
    """Tell of files of running domains that somebody removed: the memory is freed at their end all the same."""
    if not missing:
        return
    phases = context.ledger.phases()
    for extent in context.ledger.extents_in(segment):
        change = phases.get(extent.uuid)
        running = change is not None and change.phase is Phase.RUNNING and extent.state is ExtentState.POPULATED
        if not (str(extent.path) in missing and running) or extent.path.exists():
            continue
        held = context.ledger.find(extent.uuid)
        # one that has ended, and whose end cannot be written into the ledger now, has no file any more either
        if held and qemu_processes.qemu_pid(Path(context.config.libvirt.run_dir), held.name) is not None:
            with context.attempts.trying(str(extent.path)):
                raise file_gone(held.name, extent.path)


async def _charge_mapped_excess(context: ReconcileContext, segment: SegmentId) -> list[str]:
    """Charge the memory of a device that its QEMU has beyond its charge: the file has the device's full size.

    No other domain gets that memory any more, whatever libvirt and the guest report.
    """
    actions = []
    for extent in context.ledger.charged_in_part(segment):
        with context.attempts.trying(str(extent.path)), contextlib.suppress(FileNotFoundError):
            had_bytes = min(extent.size_bytes, segment_files.use_of(extent.path).held_bytes)
            more_bytes = had_bytes - extent.charged_bytes
            if more_bytes <= 0:
                continue
            if not context.dry_run:
                shares = dict(extent.shares)
                first = next(iter(shares), min(context.inventory.nodes(segment)))
                context.ledger.recharge(extent, shares | {first: shares.get(first, 0) + more_bytes})
            actions.append(f"charge {format_size(more_bytes)} more at {extent.path}: its QEMU has it")
    if actions and not context.dry_run:
        await context.extents.prezero.evict(segment)
    return actions


def _files_of_domains(paths: Iterable[str], mount: str) -> set[str]:
    start = f"{mount}/libvirt-"
    return {path for path in paths if path.startswith(start)}


async def _reconcile_unknown_file(context: ReconcileContext, record: PoolRecord, path: Path) -> list[str]:
    """Charge a file without a row in the ledger that a process maps; remove one that no process has open."""
    if path.is_symlink() or not path.is_file():
        return []
    if not await within(partial(extent_files.in_use, path), f"extent {path}"):
        if kept := await _keep_parked_file(context, record, path):
            return kept
        if not context.dry_run:
            await asyncio.to_thread(extent_files.remove, path)
        return [f"remove {path}: no reservation has it"]
    nodes = set(context.inventory.nodes(record.segment))
    find = partial(_reconstruct_extent, path, record, context.boot_id, nodes)
    try:
        extent, domain = await within(find, f"the processes that map {path}")
    except Delayed as delay:  # charge it all the same
        log.warning("%s", delay)
        extent, domain = find(mappers=())
    holder = f"the running domain {domain}" if domain else "no domain; kept until no process maps it"
    if not context.dry_run:
        context.ledger.adopt(extent, domain)
    return [f"charge {format_size(extent.size_bytes)} at {path}, which the ledger did not have, to {holder}"]


async def _keep_parked_file(context: ReconcileContext, record: PoolRecord, path: Path) -> list[str]:
    """Charge a file that is the memory of a parked domain, which the ledger has lost."""
    uuid = path.parent.name.removeprefix("libvirt-")
    state_file = state_files.file_of(context.config, uuid)
    state = await asyncio.to_thread(read_saved_state, state_file)
    if state is None:
        return []
    extent, _ = _reconstruct_extent(
        path, record, context.boot_id, set(context.inventory.nodes(record.segment)), mappers=()
    )
    if not context.dry_run:
        context.ledger.adopt(replace(extent, state=ExtentState.POPULATED), name_of(state.xml))
        context.ledger.set_parked(uuid, ParkedStep.PARKED, state_file)
        context.ledger.set_phase(uuid, Phase.PARKED)
    return [f"keep {format_size(extent.size_bytes)} at {path}: its domain is parked, {state_file}"]


def _reconstruct_extent(
    path: Path, record: PoolRecord, boot_id: str, nodes: set[int], *, mappers: tuple[int, ...] | None = None
) -> tuple[Extent, str]:
    """Return the extent that a file in use must be, and the name of its domain (empty: it has no QEMU process).

    ``mappers``: the processes (PIDs) to inspect; ``None``: all that map it. For worker threads, unless empty.
    """
    file = extent_files.file_id(path)
    size_bytes = path.stat().st_size
    uuid = path.parent.name.removeprefix("libvirt-")
    pids = processes.processes_mapping(file.device, file.inode) if mappers is None else mappers
    domains = dict(domain for _, domain in each(qemu_processes.qemu_domain, pids) if domain)
    shares = dict.fromkeys(sorted(nodes), 0)
    known = backend(record.backend).bytes_by_node(path, pids)
    shares |= {node: size for node, size in known.items() if node in nodes}
    # untouched memory comes from the pool's nodes too: by default from the first
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
