# SPDX-License-Identifier: GPL-2.0-or-later
"""Track changes of memory devices, and share the steps of attach, detach, resize and reconcile.

libvirt is called from worker threads, and with no lock held but the one that keeps two changes of one domain
apart: nothing that a hook waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from virt_dmem.aio import cancelled
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, Phase, Reservation
from virt_dmem.config.schema import Config
from virt_dmem.deadline import within
from virt_dmem.domain_xml.devices import is_boot_backend
from virt_dmem.domains.hooks import Lifecycle
from virt_dmem.errors import DomainRefused, ExtentError
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.pools import extent_files

__all__ = ["POLL_SECONDS", "Change", "DeviceOperations", "Progress", "change_of", "ended", "extent_of"]

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_SECONDS = 0.1
"""How often a guest is looked at that was asked to plug, or to let go."""

State = Literal["attached", "detached", "resized", "pending"]


@dataclass(frozen=True)
class Change:
    """What became of a memory device."""

    uuid: str
    name: str
    alias: str
    size_bytes: int
    """Of the device; of virtio-mem what its guest has plugged."""
    state: State
    message: str = ""
    """Of what is pending: why, and what is to come."""


@dataclass
class Progress:
    """How far an operation is, for who wants to stop it."""

    offered: bool = False
    """libvirt was asked: it goes on to its end, whoever waits for it."""


class DeviceOperations:
    """The parts that a change needs, which are under way, and the steps they share."""

    def __init__(self, config: Config, ledger: Ledger, inventory: Inventory, lifecycle: Lifecycle) -> None:
        self.config = config
        self.ledger = ledger
        self.inventory = inventory
        self.lifecycle = lifecycle
        self.busy: set[int] = set()
        """Extents (ids) that a command works on: whoever mends leaves them alone."""
        self.refused: set[tuple[str, str]] = set()
        """UUID and alias of devices that their guest would not let go of when it was asked last."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Change]] = set()

    def lock(self, uuid: str) -> asyncio.Lock:
        """Return what keeps two changes of one domain apart."""
        return self._turns.setdefault(uuid, asyncio.Lock())  # goes when nobody holds it or waits

    async def ask(self, question: Callable[[Hypervisor], T]) -> T:
        """Ask libvirt from a worker thread."""

        def asked() -> T:
            with Hypervisor(self.config.libvirt.uri) as libvirt:
                return question(libvirt)

        return await asyncio.to_thread(asked)

    async def whatever_the_caller_does(self, work: Callable[[Progress], Coroutine[Any, Any, Change]]) -> Change:
        """Do a piece of work; who goes away cancels it only until libvirt was asked."""
        progress = Progress()
        task = asyncio.create_task(work(progress))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not progress.offered:
                task.cancel()
            task.add_done_callback(_log_outcome)
            raise

    async def close(self) -> None:
        """Give up all that goes on; the next start of virt-dmemd mends what was left half done."""
        await cancelled(self._tasks)

    def running(self, uuid: str) -> Reservation:
        """Return what a domain that runs holds.

        :raise DomainRefused: When it does not run on memory of a pool.
        """
        return _require_running(self.ledger.find(uuid), uuid)

    def running_named(self, typed: str) -> Reservation:
        """Return what the domain that a person means (UUID or name) holds, if it runs.

        :raise DomainRefused: When it does not run on memory of a pool.
        :raise UsageError: When several have that name.
        """
        return _require_running(self.ledger.find_named(typed), typed)

    def now(self, extent: Extent) -> Extent | None:
        """Return an extent as the ledger has it now; ``None`` when it is gone."""
        found = self.ledger.find(extent.uuid)
        return next((held for held in found.extents if held.id == extent.id), None) if found else None

    async def let_go(self, extent: Extent) -> bool:
        """Free an extent if nobody maps it any more; return whether it is gone, also by somebody else's doing."""
        now = self.now(extent)
        return now is None or await self.lifecycle.free(now)

    async def commit(self, reservation: Reservation, extent: Extent) -> None:
        """QEMU has it: no path leads to it any more.

        :raise ExtentError: When the domain ended meanwhile.
        """
        async with self.lifecycle.lock(reservation.uuid):
            now = self.now(extent)
            if now is None:
                raise ended(reservation)
            link = now.link

            def close() -> None:
                extent_files.revoke_access(extent.path)
                if link:
                    extent_files.unlink(Path(link), extent.path)

            await within(close, f"extent {extent.path}")
            self.ledger.set_state(extent, ExtentState.POPULATED)


def _require_running(reservation: Reservation | None, domain: str) -> Reservation:
    if reservation is None or reservation.phase is not Phase.RUNNING:
        raise DomainRefused(
            f"Domain {domain} does not run on memory of a pool.",
            hint="'virt-dmem list' shows those that do; apply it, and start it.",
        )
    return reservation


def extent_of(reservation: Reservation, alias: str) -> Extent:
    """Return the extent of a domain's memory device.

    :raise DomainRefused: When that is no memory device, or none of a pool.
    """
    found = {extent.alias: extent for extent in reservation.extents if not is_boot_backend(extent.alias)}
    if alias not in found:
        has = f"It has {', '.join(found)}." if found else "It has none; 'virsh detach-device' takes others away."
        raise DomainRefused(f"Domain {reservation.name} has no memory device {alias!r} of a pool.", hint=has)
    return found[alias]


def change_of(reservation: Reservation, extent: Extent, state: State, *, message: str = "") -> Change:
    """Return what is to be told of a device."""
    return Change(reservation.uuid, reservation.name, extent.alias, extent.size_bytes, state, message)


def ended(reservation: Reservation) -> ExtentError:
    """Return the error for a domain that is gone before its change came to an end."""
    return ExtentError(f"Domain {reservation.name} ended meanwhile.", hint="Start it again and try once more.")


def _log_outcome(task: asyncio.Task[Change]) -> None:
    if task.cancelled():
        log.info("an attach was given up: who asked for it went away")
    elif (error := task.exception()) is not None:
        log.warning("%s", error)
