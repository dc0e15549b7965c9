# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt: the only module that imports it.

Every call here may wait for a domain's lock, and so for a hook that waits for ``virt-dmemd``: the daemon calls
from worker threads only, and holds nothing while it does.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import libvirt

from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.errors import DmemError, HypervisorError, UsageError
from virt_dmem.hypervisor import define_race

__all__ = ["DomainInfo", "Event", "Hypervisor", "run_event_loop"]

log = logging.getLogger(__name__)

DEFINITIONS_DIR = Path("/etc/libvirt/qemu")
"""Where libvirt writes down the domains of qemu:///system."""
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
_ID = re.compile(r"[0-9]{1,9}")
"""What libvirt takes for the id of a domain that runs: a positive int."""


@dataclass(frozen=True)
class DomainInfo:
    """A domain as libvirt has it; ``managed``, ``applied`` and ``memory`` are of its persistent XML."""

    uuid: str
    name: str
    active: bool
    managed: bool
    applied: bool
    memory: DomainMemory | None
    """``None`` where it is not applied."""


class Event(enum.Enum):
    """What happened to a domain."""

    DEFINED = "defined"
    """Its persistent XML is new."""
    UNDEFINED = "undefined"
    """It has no persistent XML any more."""
    STARTED = "started"
    """It runs, and its hooks have been called."""
    DEVICES = "devices"
    """Something was attached to it."""
    REMOVED = "removed"
    """A device is gone: its guest has let go of it."""
    KEPT = "kept"
    """A guest refused to let go of a device."""
    RESIZED = "resized"
    """A guest plugged or unplugged blocks of virtio-mem."""
    STOPPED = "stopped"
    """It does not run any more."""


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: Event.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: Event.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: Event.STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: Event.STOPPED,
}

_DEVICES = {
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: Event.DEVICES,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: Event.REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: Event.KEPT,
    libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE: Event.RESIZED,
}


def _silent(_context: object, _error: object) -> None:
    """Keep libvirt from printing errors to stderr; they are raised as well."""


libvirt.registerErrorHandler(_silent, None)


@cache
def run_event_loop() -> None:
    """Serve libvirt's events in a thread of its own, for the life of the process.

    To be called before any connection is opened that wants events.
    """
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()


class Hypervisor:
    """A connection; use it as a context manager. Domains go by their UUID, and ``find`` has that of what was typed.

    :raise HypervisorError: From every method, when libvirt refuses; the message repeats its words.
    """

    def __init__(self, uri: str, definitions_dir: Path = DEFINITIONS_DIR) -> None:
        self._uri = uri
        self._definitions_dir = definitions_dir
        self._watches: list[int] = []
        try:
            self._connection: Any = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"libvirt does not answer at {uri}: {error.get_error_message()}.",
                hint="Look whether libvirtd or virtqemud runs, or name another one with --connect.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a dead one too.

        What is watched is given up first, call by call. Left to libvirtd, who then finds out by itself that a
        client is gone, that was seen to crash a libvirtd 9.0 ("could not find event callback … for deletion").
        """
        with contextlib.suppress(libvirt.libvirtError):
            for watch in self._watches:
                self._connection.domainEventDeregisterAny(watch)
            if self._watches:
                self._connection.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def find(self, typed: str) -> str:
        """Return the UUID of the domain that a person means: by UUID, else by id or name, as virsh takes it.

        :raise UsageError: When it is the id of one domain and the name of another: tenants choose names.
        """
        by_uuid = self._looked_up(typed, lambda: self._connection.lookupByUUIDString(typed))
        if by_uuid is not None:
            return str(by_uuid.UUIDString())
        found = {self._looked_up(typed, lambda: self._connection.lookupByName(typed))}
        if _ID.fullmatch(typed):
            found.add(self._looked_up(typed, lambda: self._connection.lookupByID(int(typed))))
        uuids: list[str] = sorted({domain.UUIDString() for domain in found if domain is not None})
        if not uuids:
            raise self._unknown(typed)
        if len(uuids) > 1:
            raise UsageError(
                f"2 domains are meant by {typed!r}, one by its id and one by its name: {' and '.join(uuids)}.",
                hint="Say which one by its UUID.",
            )
        return uuids[0]

    def _domain(self, uuid: str) -> Any:  # noqa: ANN401 -- libvirt-python has no types
        """Look a domain up by its key alone: a name that looks like it is another's."""
        found = self._looked_up(uuid, lambda: self._connection.lookupByUUIDString(uuid))
        if found is None:
            raise self._unknown(uuid)
        return found

    def _looked_up(self, domain: str, lookup: Callable[[], Any]) -> Any:  # noqa: ANN401
        try:
            return lookup()
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                return None
            raise self._failed(domain, error) from error

    def _unknown(self, domain: str) -> HypervisorError:
        return HypervisorError(
            f"libvirt at {self._uri} knows no domain {domain!r}.", hint="'virsh list --all' shows those it knows."
        )

    def _failed(self, what: str, error: libvirt.libvirtError) -> HypervisorError:
        return HypervisorError(
            f"libvirt refused, for {what}: {error.get_error_message()}.",
            hint="Nothing was changed; mend what libvirt names and try again.",
        )

    def inactive_xml(self, domain: str, *, secure: bool = True) -> bytes:
        """Return a domain's persistent XML, with its passwords when ``secure``."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
        found = self._domain(domain)
        try:
            if not found.isPersistent():
                raise HypervisorError(
                    f"Domain {domain} is transient: it has no persistent XML to rewrite.",
                    hint="Pipe the XML that creates it through 'virt-dmem rewrite'.",
                )
            return str(found.XMLDesc(flags)).encode()
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def is_active(self, domain: str) -> bool:
        """Tell whether a domain runs, or is paused."""
        found = self._domain(domain)
        try:
            return bool(found.isActive())
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def redefine(self, domain: str, transform: Callable[[bytes], bytes], tries: int = 3) -> tuple[bytes, bytes]:
        """Replace a domain's persistent XML by what ``transform`` makes of it.

        It is read again right before it is defined, and all starts over if it changed in between. What another
        tool defines after that look and before our own define is found in what libvirt wrote down, and done over
        by ``transform`` as well; if it is not found there, that is logged. What ``transform`` leaves unchanged
        is not defined again.

        :return: The XML before and after.
        """
        before = current = self.inactive_xml(domain)
        for _ in range(tries):
            after = transform(before)
            if after == current:
                return before, after
            found = self._domain(domain)
            with define_race.follow(self._definitions_dir, found.name()) as written:
                now = self.inactive_xml(domain)
                if now == current:
                    try:
                        self._connection.defineXML(after.decode())
                    except libvirt.libvirtError as error:
                        raise self._failed(domain, error) from error
            if now != current:
                before = current = now
                continue
            theirs = written.overwritten(current, after)
            if theirs is None:
                if written.may_miss_some(after):
                    log.warning(
                        "%s: another tool defined it in the same moment, and its change may be lost; look at"
                        " 'virsh dumpxml --inactive %s'", found.name(), domain,
                    )  # fmt: skip
                return before, after
            log.info("%s: another tool defined it in the same moment; its change is kept", found.name())
            before, current = theirs, self.inactive_xml(domain)
            if not define_race.same(current, after):  # a third change, which knows of one of the others at most
                log.warning("%s: it was defined twice in the same moment; the last one is kept", found.name())
                return before, after
        raise HypervisorError(
            f"The XML of {domain} changed {tries} times while it was being rewritten.",
            hint="Another tool keeps redefining the domain; stop it and try again.",
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of libvirt's daemon and library, and of the QEMU it starts by default."""
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
        """Return every domain that libvirt knows, by name; one that goes away meanwhile is left out."""
        try:
            found = self._connection.listAllDomains()
        except libvirt.libvirtError as error:
            raise self._failed("the list of domains", error) from error
        infos = [info for info in map(self._info, found) if info is not None]
        return sorted(infos, key=lambda info: info.name)

    def info(self, domain: str) -> DomainInfo | None:
        """Return one domain; ``None`` where there is none of that UUID."""
        try:
            return self._info(self._connection.lookupByUUIDString(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain, error) from error

    def _info(self, domain: Any) -> DomainInfo | None:  # noqa: ANN401
        try:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
            xml = str(domain.XMLDesc(flags)).encode()
            active = bool(domain.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain.name(), error) from error
        document = DomainDocument(xml)
        managed, memory = document.is_managed(), None
        if managed:
            # who asks for pool memory and cannot have it is managed all the same
            with contextlib.suppress(DmemError):
                memory = document.memory()
                managed = memory.managed
        applied = memory is not None and memory.applied
        return DomainInfo(domain.UUIDString(), domain.name(), active, managed, applied, memory if applied else None)

    def live_xml(self, domain: str) -> bytes | None:
        """Return the live XML, without passwords, of a domain that has started; ``None`` of any other.

        While it starts, a domain is active and has the state that it had before, or is paused for that reason
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
        """Return the live XML with nothing in flight: what is being attached has been, or has failed.

        Asking for the memory's statistics waits for the domain's job, and an attach is one
        (``qemuDomainMemoryStats`` in libvirt's ``qemu_driver.c``). ``None`` of a domain that does not run.
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
        """Tell whether a domain has persistent XML."""
        found = self._domain(domain)
        try:
            return bool(found.isPersistent())
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def attach(self, domain: str, device: str, *, persistent: bool) -> None:
        """Attach a device (XML) to a domain that runs, and to its persistent XML if that is targets."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else 0)
        found = self._domain(domain)
        try:
            found.attachDeviceFlags(device, flags)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def detach(self, domain: str, alias: str, *, persistent: bool) -> None:
        """Ask the guest to let go of a device; it is gone when ``Event.REMOVED`` says so."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else 0)
        found = self._domain(domain)
        try:
            found.detachDeviceAlias(alias, flags)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def update(self, domain: str, device: str) -> None:
        """Change a device (XML) of a domain that runs, such as what virtio-mem is to have."""
        found = self._domain(domain)
        try:
            found.updateDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def watch(self, on_event: Callable[[str, Event, str], None], on_closed: Callable[[], None]) -> None:
        """Call back, from the event thread: with UUID, event, device alias or ""; when the connection is gone."""

        def lifecycle(_from: object, domain: Any, event: int, *_detail: object) -> None:  # noqa: ANN401
            if event in _LIFECYCLE:
                on_event(domain.UUIDString(), _LIFECYCLE[event], "")

        def device(_from: object, domain: Any, alias: str, *detail: Any) -> None:  # noqa: ANN401
            on_event(domain.UUIDString(), detail[-1], alias)

        def closed(*_why: object) -> None:
            on_closed()

        try:
            self._connection.registerCloseCallback(closed, None)
            self._connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            register = self._connection.domainEventRegisterAny
            self._watches.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None))
            for kind, event in _DEVICES.items():
                self._watches.append(register(None, kind, device, event))
        except libvirt.libvirtError as error:
            raise self._failed("its events", error) from error
