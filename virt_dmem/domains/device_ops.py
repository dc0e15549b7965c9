# SPDX-License-Identifier: GPL-2.0-or-later
"""Track operations on memory devices, and share the steps of attach, detach, resize and reconcile.

libvirt is called from worker threads, and under no lock but the one that serialises operations on the devices of
one domain: no hook waits for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState, Phase, Reservation
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.devices import is_boot_backend
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.errors import DomainRefused, ExtentError
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.pools import extent_files
from virt_dmem.runtime.aio import cancel_and_wait
from virt_dmem.runtime.deadline import within
from virt_dmem.text import did_you_mean

__all__ = [
    "Cancellation",
    "DeviceChange",
    "DeviceOperations",
    "POLL_SECONDS",
    "describe_change",
    "domain_ended",
    "require_device",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_SECONDS = 0.1
"""Between two looks at a guest that was asked to plug or unplug memory."""

State = Literal["attached", "detached", "resized", "pending"]


@dataclass(frozen=True)
class DeviceChange:
    """The outcome of an operation on a memory device."""

    uuid: str
    name: str
    alias: str
    size_bytes: int
    """Of the device; of virtio-mem the part that its guest has plugged."""
    state: State
    message: str = ""
    """Of a pending change: the reason, and what follows."""


class Cancellation:
    """Whether an operation may still be cancelled: no more once libvirt was asked to make the change."""

    def __init__(self) -> None:
        self._allowed = True

    @property
    def allowed(self) -> bool:
        """Whether cancelling the request cancels the operation."""
        return self._allowed

    def forbid(self) -> None:
        """Carry the operation to its end from here on, even when its request is cancelled."""
        self._allowed = False


class DeviceOperations:
    """The parts that operations on memory devices need, which devices are in work, and the steps they share."""

    def __init__(
        self, config: Config, ledger: Ledger, inventory: Inventory, admission: Admission, extents: ExtentManager
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.inventory = inventory
        self.admission = admission
        self.extents = extents
        self._busy: set[int] = set()
        """Extents (ids) that an operation works on."""
        self._refused: set[tuple[str, str]] = set()
        """UUID and alias of devices whose guest refused the last hot-unplug."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[DeviceChange]] = set()

    # Which operations are in progress

    def lock(self, uuid: str) -> asyncio.Lock:
        """Return the lock that serialises operations on the devices of a domain."""
        return self._locks.setdefault(uuid, asyncio.Lock())  # goes when nobody holds it or waits

    @contextmanager
    def working_on(self, extent: Extent) -> Iterator[None]:
        """Mark an extent as in work in this context: reconcile leaves it alone."""
        self._busy.add(extent.id)
        try:
            yield
        finally:
            self._busy.discard(extent.id)

    def is_busy(self, extent: Extent) -> bool:
        """Return whether an operation works on an extent."""
        return extent.id in self._busy

    def note_refusal(self, uuid: str, alias: str) -> None:
        """Note that a guest refused the hot-unplug of a device; ignore devices that the ledger does not have."""
        if any(extent.alias == alias for extent in self.ledger.extents_of(uuid)):  # a guest may name anything
            self._refused.add((uuid, alias))

    def forget_refusal(self, uuid: str, alias: str) -> None:
        """Forget an earlier refusal, before the guest is asked again."""
        self._refused.discard((uuid, alias))

    def has_refused(self, uuid: str, alias: str) -> bool:
        """Return whether the guest refused the hot-unplug that it was asked for last."""
        return (uuid, alias) in self._refused

    async def run_shielded(self, work: Callable[[Cancellation], Coroutine[Any, Any, DeviceChange]]) -> DeviceChange:
        """Run an operation; cancelling the request cancels it only while ``Cancellation`` allows that."""
        cancellation = Cancellation()
        task = asyncio.create_task(work(cancellation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if cancellation.allowed:
                task.cancel()
            task.add_done_callback(_log_outcome)
            raise

    async def close(self) -> None:
        """Cancel all operations; the next start of virt-dmemd reconciles those left unfinished."""
        await cancel_and_wait(self._tasks)

    # Shared steps

    async def ask_libvirt(self, question: Callable[[Hypervisor], T]) -> T:
        """Return the answer of libvirt, asked in a worker thread."""

        def ask() -> T:
            with Hypervisor(self.config.libvirt.uri) as libvirt:
                return question(libvirt)

        return await asyncio.to_thread(ask)

    def require_running(self, uuid: str) -> Reservation:
        """Return the reservation of a running domain.

        :raise DomainRefused: When it does not run on memory of a pool.
        """
        return _require_running(self.ledger.find(uuid), uuid)

    def require_running_named(self, domain: str) -> Reservation:
        """Return the reservation of a running domain, given its UUID or name.

        :raise DomainRefused: When it does not run on memory of a pool.
        :raise UsageError: When several have that name.
        """
        found = self.ledger.find_named(domain)
        near = "" if found else did_you_mean(domain, self.ledger.names().values())
        return _require_running(found, domain, near)

    def current(self, extent: Extent) -> Extent | None:
        """Return an extent as the ledger has it now; ``None`` when it is gone."""
        found = self.ledger.find(extent.uuid)
        return next((held for held in found.extents if held.id == extent.id), None) if found else None

    async def remove_if_unmapped(self, extent: Extent) -> bool:
        """Remove an extent that no process maps; return whether it is gone, also if another operation did it."""
        current = self.current(extent)
        return current is None or await self.extents.remove(current)

    async def finish_attach(self, reservation: Reservation, extent: Extent) -> None:
        """Revoke access to an extent that QEMU has mapped, remove its link, and mark it POPULATED.

        :raise ExtentError: When the domain ended meanwhile.
        """
        async with self.extents.lock(reservation.uuid):
            current = self.current(extent)
            if current is None:
                raise domain_ended(reservation)
            link = current.link

            def close() -> None:
                extent_files.revoke_access(extent.path)
                if link:
                    extent_files.unlink(Path(link), extent.path)

            await within(close, f"extent {extent.path}")
            self.ledger.set_state(extent, ExtentState.POPULATED)


def _require_running(reservation: Reservation | None, domain: str, near: str = "") -> Reservation:
    if reservation is None or reservation.phase is not Phase.RUNNING:
        raise DomainRefused(
            f"Domain {domain} does not run on memory of a pool.",
            hint=f"{near}'virt-dmem list' shows the domains that do; apply this one ('virt-dmem apply', or"
            " 'virt-dmem rewrite' where it is transient), and start it.",
        )
    return reservation


def require_device(reservation: Reservation, alias: str) -> Extent:
    """Return the extent of a domain's memory device.

    :raise DomainRefused: When there is no such memory device, or its memory is not from a pool.
    """
    found = {extent.alias: extent for extent in reservation.extents if not is_boot_backend(extent.alias)}
    if alias not in found:
        near = did_you_mean(alias, found)
        has = f"{near}It has {', '.join(found)}." if found else "It has none; 'virsh detach-device' removes others."
        raise DomainRefused(f"Domain {reservation.name} has no memory device {alias!r} from a pool.", hint=has)
    return found[alias]


def describe_change(reservation: Reservation, extent: Extent, state: State, *, message: str = "") -> DeviceChange:
    """Return the outcome of an operation on a device of a domain."""
    return DeviceChange(reservation.uuid, reservation.name, extent.alias, extent.size_bytes, state, message)


def domain_ended(reservation: Reservation) -> ExtentError:
    """Return the error for a domain that ended before the operation on its device did."""
    return ExtentError(
        f"Domain {reservation.name} ended before its memory device was changed.",
        hint="Start it again, and repeat the command.",
    )


def _log_outcome(task: asyncio.Task[DeviceChange]) -> None:
    if task.cancelled():
        log.info("attach cancelled: its request was cancelled")
    elif (error := task.exception()) is not None:
        log.warning("%s", error)
