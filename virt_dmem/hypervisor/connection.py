# SPDX-License-Identifier: GPL-2.0-or-later
"""Call libvirt: read, redefine and change domains, and hear of their events."""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import libvirt

from virt_dmem.domain_xml.adoption.adopt import adopt
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domain_xml.traces import Trace, find_trace, request_in
from virt_dmem.errors import (
    AdoptionRefused,
    DmemError,
    DomainRefused,
    HypervisorError,
)
from virt_dmem.hypervisor import define_race
from virt_dmem.hypervisor.saving import Saving
from virt_dmem.text import counted

__all__ = ["DomainInfo", "Event", "Hypervisor", "run_event_loop"]

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3


@dataclass(frozen=True)
class DomainInfo:
    """Describe a domain in libvirt; ``managed``, ``applied`` and ``memory`` are those of its persistent XML."""

    uuid: str
    name: str
    active: bool
    managed: bool
    applied: bool
    memory: DomainMemory | None
    """``None`` if it is neither applied nor adopted."""
    persistent: bool = True
    trace: Trace = Trace.NONE
    """What it has of a rewrite, though it does not ask for pool memory; of persistent domains only."""
    request: bytes = b""
    """Its request with all that it keeps, to be remembered; of applied persistent domains only."""
    adopted: bool = False
    """It does not ask for pool memory, and a rule takes it: ``memory`` comes from the rule's pool."""
    refusal: AdoptionRefused | None = None
    """Why a rule that takes it rejects it."""
    unknown_request: DomainRefused | None = None
    """What it has instead of a request, by mistake."""


class Event(enum.Enum):
    """Name an event of a domain."""

    DEFINED = "defined"
    """Its persistent XML was defined or changed."""
    UNDEFINED = "undefined"
    """Its persistent XML was removed."""
    STARTED = "started"
    """It is running, and its hooks have been called."""
    DEVICE_ADDED = "devices"
    """A device was attached."""
    DEVICE_REMOVED = "removed"
    """A device was hot-unplugged."""
    DEVICE_REMOVAL_FAILED = "kept"
    """A guest refused to hot-unplug a device."""
    MEMORY_RESIZED = "resized"
    """A guest plugged or unplugged blocks of virtio-mem."""
    STOPPED = "stopped"
    """It stopped."""


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: Event.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: Event.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: Event.STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: Event.STOPPED,
}

_DEVICES = {
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: Event.DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: Event.DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: Event.DEVICE_REMOVAL_FAILED,
    libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE: Event.MEMORY_RESIZED,
}


@cache
def run_event_loop() -> None:
    """Run libvirt's event loop in a thread, for the life of the process.

    Call it before opening a connection that receives events.
    """
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()


class Hypervisor(Saving):
    """Connect to libvirt; use it as a context manager. Methods take a domain's UUID; ``find`` returns it.

    :param rules: Those by which domains are adopted.

    :raise HypervisorError: From every method, when libvirt fails; with libvirt's own message.
    """

    def inactive_xml(self, domain: str, *, secure: bool = True) -> bytes:
        """Return a domain's persistent XML, with its passwords if ``secure``."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
        found = self._domain(domain)
        try:
            if not found.isPersistent():
                raise HypervisorError(
                    f"Domain {domain} is transient: it has no persistent XML to rewrite.",
                    hint="Pipe the XML from which it is created through 'virt-dmem rewrite'.",
                )
            return str(found.XMLDesc(flags)).encode()
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def definition(self, domain: str) -> bytes:
        """Return a domain's persistent XML, of a transient domain its live XML, both without passwords."""
        found = self._domain(domain)
        try:
            return str(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if found.isPersistent() else 0)).encode()
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def is_active(self, domain: str) -> bool:
        """Return whether a domain is running or paused."""
        found = self._domain(domain)
        try:
            return bool(found.isActive())
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def may_run(self, domain: str) -> bool:
        """Return whether a domain (UUID) is active; false if it does not exist."""
        found = self._looked_up(domain, lambda: self._connection.lookupByUUIDString(domain))
        try:
            return found is not None and bool(found.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise self._failed(domain, error) from error

    def name_of(self, domain: str) -> str:
        """Return the name of a domain (UUID); empty if it does not exist."""
        found = self._looked_up(domain, lambda: self._connection.lookupByUUIDString(domain))
        return "" if found is None else str(found.name())

    def redefine(self, domain: str, transform: Callable[[bytes], bytes], tries: int = 3) -> tuple[bytes, bytes]:
        """Replace a domain's persistent XML by ``transform`` of it.

        It is read again right before it is defined; if it changed meanwhile, the transformation starts over. A
        concurrent redefinition between that read and our own is recovered from the files that libvirt wrote, and
        transformed as well; if it cannot be recovered, that is logged. XML that ``transform`` leaves unchanged is
        not defined again.

        :return: The XML before and after.
        """
        before = current = self.inactive_xml(domain)
        failed = "Its definition was not changed."
        for _ in range(tries):
            after = transform(before)
            if after == current:
                return before, after
            found = self._domain(domain)
            with define_race.watch(self._definitions_dir, found.name()) as written:
                now = self.inactive_xml(domain)
                if now == current:
                    try:
                        self._connection.defineXML(after.decode())
                    except libvirt.libvirtError as error:
                        raise self._failed(
                            domain,
                            error,
                            otherwise=failed,
                            shown_by=f"'virsh dumpxml --inactive {domain}'",
                        ) from error
            if now != current:
                before = current = now
                continue
            theirs = written.overwritten(current, after)
            if theirs is None:
                if written.may_miss_some(after):
                    log.warning(
                        "%s: concurrent redefinition by another tool, whose change may be lost; check"
                        " 'virsh dumpxml --inactive %s'", found.name(), domain,
                    )  # fmt: skip
                return before, after
            log.info("%s: concurrent redefinition by another tool; its change is kept", found.name())
            failed = "It is rewritten as it was before another tool changed it at the same moment: do that again."
            before, current = theirs, self.inactive_xml(domain)
            if not define_race.same(current, after):  # a third change, based on one of the others at most
                log.warning("%s: two concurrent redefinitions; the last one is kept", found.name())
                return before, after
        raise HypervisorError(
            f"The XML of {domain} changed {counted(tries, 'time')} while it was being rewritten.",
            hint="Another tool keeps redefining the domain; stop that tool, and try again.",
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of libvirt's daemon, of its library, and of its default QEMU."""
        try:
            found = {
                "libvirt": self._connection.getLibVersion(),
                "libvirt library": libvirt.getVersion(),
                "hypervisor": self._connection.getVersion(),
            }
        except libvirt.libvirtError as error:
            raise self._failed("its versions", error) from error
        # 1000000 * major + 1000 * minor + release, everywhere
        return {name: f"{at // 10**6}.{at // 1000 % 1000}.{at % 1000}" for name, at in found.items()}

    def domains(self) -> list[DomainInfo]:
        """Return all domains, sorted by name, without those that disappear meanwhile."""
        try:
            found = self._connection.listAllDomains()
        except libvirt.libvirtError as error:
            raise self._failed("the list of domains", error) from error
        infos = [info for info in map(self._info, found) if info is not None]
        return sorted(infos, key=lambda info: info.name)

    def info(self, domain: str) -> DomainInfo | None:
        """Return one domain; ``None`` if it does not exist."""
        try:
            return self._info(self._connection.lookupByUUIDString(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain, error) from error

    def _info(self, domain: Any) -> DomainInfo | None:  # noqa: ANN401
        try:
            persistent = bool(domain.isPersistent())
            xml = str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0)).encode()
            active = bool(domain.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain.name(), error) from error
        document = DomainDocument(xml)
        managed, memory, request, trace = document.is_managed(), None, b"", Trace.NONE
        adopted, refusal, unknown = None, None, None
        # a domain that requests pool memory in an invalid way is managed all the same
        with contextlib.suppress(DmemError):
            if managed:
                request = request_in(document.root)  # before its tree is freed
                memory = document.memory()
            else:
                unknown = document.unknown_request()
                trace = find_trace(xml)
                try:
                    adopted = adopt(self._rules, document)
                except AdoptionRefused as error:
                    refusal = error
        applied = memory is not None and memory.applied
        return DomainInfo(
            uuid=domain.UUIDString(),
            name=domain.name(),
            active=active,
            managed=managed,
            applied=applied,
            memory=memory if applied else adopted,
            persistent=persistent,
            trace=trace if persistent else Trace.NONE,
            request=request if persistent and applied else b"",
            adopted=adopted is not None,
            refusal=refusal,
            unknown_request=unknown,
        )

    def live_xml(self, domain: str) -> bytes | None:
        """Return the live XML, without passwords, of a domain that has started, else ``None``.

        While a domain starts, it is active and has its previous state, or is paused for that reason
        (``qemuProcessInit`` and ``qemuProcessLaunch`` in libvirt's ``qemu_process.c``).
        """
        try:
            found = self._connection.lookupByUUIDString(domain)
            state, reason = found.state()
            starts = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
            if not found.isActive() or state == libvirt.VIR_DOMAIN_SHUTOFF or (state, reason) == starts:
                return None
            return str(found.XMLDesc(0)).encode()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain, error) from error

    def settled_xml(self, domain: str) -> bytes | None:
        """Return the live XML after any attach in progress has succeeded or failed; ``None`` if it is not running.

        A request for memory statistics waits for the domain's job, and an attach is one
        (``qemuDomainMemoryStats`` in libvirt's ``qemu_driver.c``).
        """
        try:
            found = self._connection.lookupByUUIDString(domain)
            found.memoryStats()
            return str(found.XMLDesc(0)).encode()
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                return None
            raise self._failed(domain, error) from error

    def is_persistent(self, domain: str) -> bool:
        """Return whether a domain is persistent."""
        found = self._domain(domain)
        try:
            return bool(found.isPersistent())
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def attach(self, domain: str, device: str, *, persistent: bool) -> None:
        """Attach a device (XML) to a running domain, and if ``persistent`` to its persistent XML."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else 0)
        found = self._domain(domain)
        try:
            found.attachDeviceFlags(device, flags)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error, shown_by=f"'virt-dmem show {domain}'") from error

    def detach(self, domain: str, alias: str, *, persistent: bool) -> None:
        """Ask the guest to hot-unplug a device; ``Event.DEVICE_REMOVED`` follows when it has."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else 0)
        found = self._domain(domain)
        try:
            found.detachDeviceAlias(alias, flags)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error, shown_by=f"'virt-dmem show {domain}'") from error

    def update(self, domain: str, device: str) -> None:
        """Change a device (XML) of a running domain, such as the requested size of virtio-mem."""
        found = self._domain(domain)
        try:
            found.updateDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error, shown_by=f"'virt-dmem show {domain}'") from error

    def subscribe(self, on_event: Callable[[str, Event, str], None], on_closed: Callable[[], None]) -> None:
        """Call back from the event thread: with UUID, event, device alias or ""; when the connection is closed."""

        def lifecycle(_from: object, domain: Any, event: int, *_detail: object) -> None:  # noqa: ANN401
            if event in _LIFECYCLE:
                on_event(domain.UUIDString(), _LIFECYCLE[event], "")

        def device(_from: object, domain: Any, alias: str, *detail: Any) -> None:  # noqa: ANN401
            on_event(domain.UUIDString(), detail[-1], alias)

        def metadata(_from: object, domain: Any, _kind: int, namespace: str | None, _data: object) -> None:  # noqa: ANN401
            if namespace == NAMESPACE:  # no other event tells of 'virsh metadata'
                on_event(domain.UUIDString(), Event.DEFINED, "")

        def closed(*_why: object) -> None:
            on_closed()

        try:
            self._connection.registerCloseCallback(closed, None)
            self._connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            register = self._connection.domainEventRegisterAny
            self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None))
            self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata, None))
            for kind, event in _DEVICES.items():
                self._callbacks.append(register(None, kind, device, event))
        except libvirt.libvirtError as error:
            raise self._failed("its events", error) from error
