# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt: the only module that imports it.

Every call here may wait for a domain's lock, and so for a hook that waits for ``virt-dmemd``: the daemon calls
from worker threads only, and holds nothing while it does.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import libvirt

from virt_dmem.domain_xml import is_managed, read_domain
from virt_dmem.errors import DmemError, HypervisorError

__all__ = ["DomainInfo", "Event", "Hypervisor", "run_event_loop"]

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3


@dataclass(frozen=True)
class DomainInfo:
    """A domain as libvirt has it; ``managed`` and ``applied`` are of its persistent XML."""

    uuid: str
    name: str
    active: bool
    managed: bool
    applied: bool


class Event(enum.Enum):
    """What happened to a domain."""

    DEFINED = "defined"
    """Its persistent XML is new."""
    UNDEFINED = "undefined"
    """It has no persistent XML any more."""
    STARTED = "started"
    """It runs, and its hooks have been called."""
    DEVICES = "devices"
    """Something was attached to it or detached."""
    STOPPED = "stopped"
    """It does not run any more."""


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: Event.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: Event.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: Event.STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: Event.STOPPED,
}


def _silent(_context: object, _error: object) -> None:
    """Keep libvirt from printing errors to stderr; they are raised as well."""


libvirt.registerErrorHandler(_silent, None)


def run_event_loop() -> None:
    """Serve libvirt's events in a thread of its own, for the life of the process.

    To be called once, before any connection is opened that wants events.
    """
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()


class Hypervisor:
    """A connection; use it as a context manager.

    :raise HypervisorError: From every method, when libvirt refuses; the message repeats its words.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
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
        """Close the connection; a dead one too."""
        try:
            self._connection.close()
        except libvirt.libvirtError:
            return

    def _domain(self, domain: str) -> Any:  # noqa: ANN401 -- libvirt-python has no types
        """Look a domain up as virsh does: by id, then UUID, then name."""
        lookups: list[Callable[[], Any]] = [
            lambda: self._connection.lookupByUUIDString(domain),
            lambda: self._connection.lookupByName(domain),
        ]
        if domain.isdecimal():
            lookups.insert(0, lambda: self._connection.lookupByID(int(domain)))
        for lookup in lookups:
            try:
                return lookup()
            except libvirt.libvirtError as error:
                code = error.get_error_code()
                if code not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise self._failed(domain, error) from error
        raise HypervisorError(
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

        It is read again right before it is defined, and all starts over if it changed in between. What
        ``transform`` leaves unchanged is not defined again.

        :return: The XML before and after.
        """
        for _ in range(tries):
            before = self.inactive_xml(domain)
            after = transform(before)
            if after == before:
                return before, after
            if self.inactive_xml(domain) != before:
                continue
            try:
                self._connection.defineXML(after.decode())
            except libvirt.libvirtError as error:
                raise self._failed(domain, error) from error
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

    def _info(self, domain: Any) -> DomainInfo | None:  # noqa: ANN401
        try:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
            xml = str(domain.XMLDesc(flags)).encode()
            active = bool(domain.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._failed(domain.name(), error) from error
        managed = applied = False
        if is_managed(xml):
            try:
                memory = read_domain(xml)
                managed, applied = memory.managed, memory.applied
            except DmemError:
                managed = True  # it asks for pool memory, and cannot have it
        return DomainInfo(domain.UUIDString(), domain.name(), active, managed, applied)

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

    def watch(self, on_event: Callable[[str, Event], None], on_closed: Callable[[], None]) -> None:
        """Call back, from the event thread: with a UUID and what happened; when the connection is gone."""

        def lifecycle(_from: object, domain: Any, event: int, *_detail: object) -> None:  # noqa: ANN401
            if event in _LIFECYCLE:
                on_event(domain.UUIDString(), _LIFECYCLE[event])

        def devices(_from: object, domain: Any, *_detail: object) -> None:  # noqa: ANN401
            on_event(domain.UUIDString(), Event.DEVICES)

        def closed(*_why: object) -> None:
            on_closed()

        try:
            self._connection.registerCloseCallback(closed, None)
            self._connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            for kind, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, devices),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, devices),
            ):
                self._connection.domainEventRegisterAny(None, kind, callback, None)
        except libvirt.libvirtError as error:
            raise self._failed("its events", error) from error
