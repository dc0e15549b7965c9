# SPDX-License-Identifier: GPL-2.0-or-later
"""Act on what libvirt and QEMU report about the memory of a running domain.

QEMU, which its guest may control, can report anything, any number of times: nothing is recorded twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.device_reconcile import DeviceReconciler
from virt_dmem.errors import DmemError
from virt_dmem.hypervisor.connection import Event
from virt_dmem.runtime.rate_limit import RateLimitedLog
from virt_dmem.text import clipped, printable

__all__ = ["GuestEvents"]

log = logging.getLogger(__name__)
limited_log = RateLimitedLog(log)


class GuestEvents:
    """Handle events of memory devices, and memory failures.

    :param changed: Set when an alert may become active or end.
    :param doubt: Called with the UUID of a domain whose event could not be handled.
    """

    def __init__(
        self,
        ledger: Ledger,
        device_operations: DeviceOperations,
        device_reconciler: DeviceReconciler,
        changed: asyncio.Event,
        doubt: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._device_operations = device_operations
        self._device_reconciler = device_reconciler
        self._changed = changed
        self._doubt = doubt
        self._unrecorded: dict[str, str] = {}
        """Memory failures that the ledger could not take, by UUID."""

    async def device_event(self, uuid: str, event: Event, alias: str) -> None:
        """Handle an event of a device; ignore devices whose memory does not come from a pool."""
        try:
            if alias not in {extent.alias for extent in self._ledger.extents_of(uuid)}:
                return
            if event is Event.DEVICE_REMOVAL_FAILED:
                self._device_operations.note_refusal(uuid, alias)
                return
            reason = f"libvirt says that {alias} is {event.value}"
            for action in await self._device_reconciler.reconcile_domain(uuid, reason):
                log.info("domain %s: %s", uuid, action)
        except DmemError as error:
            limited_log(logging.WARNING, uuid, "%s of domain %s: %s", alias, uuid, error)
            self._doubt(uuid)

    async def qemu_event(self, uuid: str, event: str, data: Mapping[str, Any]) -> None:
        """Handle an event from QEMU's monitor; libvirt reports some of them as well, later."""
        alias = _shown(data.get("device") or data.get("id") or "")
        if event in ("SHUTDOWN", "RESUME"):
            limited_log(logging.INFO, uuid, "domain %s: QEMU event %s", uuid, event)
            self._changed.set()
        elif event == "MEMORY_FAILURE":
            self._memory_failed(uuid, f"{_known(data.get('recipient'))} {_known(data.get('action'))}")
        elif event in ("MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR") and alias:
            await self.device_event(uuid, Event.DEVICE_REMOVAL_FAILED, alias)
        elif event in ("MEMORY_DEVICE_SIZE_CHANGE", "DEVICE_DELETED") and alias:
            await self.device_event(
                uuid, Event.MEMORY_RESIZED if event.startswith("MEMORY") else Event.DEVICE_REMOVED, alias
            )

    def record_failures(self) -> None:
        """Record the memory failures that could not be recorded when they were reported."""
        for uuid, what in list(self._unrecorded.items()):
            self._memory_failed(uuid, what)

    def _memory_failed(self, uuid: str, what: str) -> None:
        self._unrecorded.pop(uuid, None)
        try:
            if all(map(self._ledger.has_failed, self._ledger.extents_of(uuid))):
                return
            name = self._ledger.add_failure(uuid, what)
            limited_log(logging.ERROR, uuid, "memory of domain %s failed: %s", name, what)
        except DmemError as error:
            limited_log(logging.ERROR, uuid, "memory of domain %s failed (%s): %s", uuid, what, error)
            self._unrecorded[uuid] = what
        self._changed.set()


def _shown(word: object) -> str:
    """Return a word from QEMU, which a guest may control, as it can be recorded and shown."""
    return clipped(printable(str(word)), 128)


def _known(word: object) -> str:
    """Return a word of ``MEMORY_FAILURE`` (QEMU's qapi/run-state.json), else "unknown"."""
    return str(word) if word in ("hypervisor", "guest", "ignore", "inject", "fatal", "reset") else "unknown"
