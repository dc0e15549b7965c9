# SPDX-License-Identifier: GPL-2.0-or-later
"""Call libvirt; the only module that imports it.

Every call may wait for a domain's lock, and so for a hook that waits for ``virt-dmemd``: the daemon calls from
worker threads only, and holds no lock that a hook needs meanwhile.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import libvirt

from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.adopt import adopt
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domain_xml.traces import Trace, find_trace, request_in
from virt_dmem.errors import (
    AdoptionRefused,
    DmemError,
    DomainRefused,
    HypervisorDenied,
    HypervisorError,
    UsageError,
)
from virt_dmem.hypervisor import define_race
from virt_dmem.hypervisor.paths import DEFINITIONS_DIR
from virt_dmem.text import counted, did_you_mean

__all__ = ["DomainInfo", "Event", "Hypervisor", "run_event_loop"]

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
_ID = re.compile(r"[0-9]{1,9}")
"""The id of a running domain: a positive int."""


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


_DENIED = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
)
"""Codes of libvirt that say who may not, rather than what cannot be done."""


def _is_denied(error: libvirt.libvirtError) -> bool:
    """Return whether polkit, libvirt's access control, or the mode of its socket keeps this user out."""
    is_socket = error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() == errno.EACCES
    return error.get_error_code() in _DENIED or is_socket


def _denied(what: str, error: libvirt.libvirtError) -> HypervisorDenied:
    return HypervisorDenied(
        f"{what}: {error.get_error_message()}.",
        hint="Run the command with sudo; or have root permit it: on Debian, members of the group libvirt may.",
    )


def _silent(_context: object, _error: object) -> None:
    """Keep libvirt from printing errors to stderr; they are raised as exceptions."""


libvirt.registerErrorHandler(_silent, None)


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


class Hypervisor:
    """Connect to libvirt; use it as a context manager. Methods take a domain's UUID; ``find`` returns it.

    :param rules: Those by which domains are adopted.

    :raise HypervisorError: From every method, when libvirt fails; with libvirt's own message.
    """

    def __init__(
        self, uri: str, definitions_dir: Path = DEFINITIONS_DIR, *, rules: Sequence[AdoptRule] = ()
    ) -> None:
        self._uri = uri
        self._rules = rules
        self._definitions_dir = definitions_dir
        self._callbacks: list[int] = []
        try:
            self._connection: Any = libvirt.open(uri)
        except libvirt.libvirtError as error:
            if _is_denied(error):
                raise _denied(f"libvirt at {uri} denies access", error) from error
            raise HypervisorError(
                f"libvirt does not answer at {uri}: {error.get_error_message()}.",
                hint="Check that libvirtd or virtqemud is running, or use another URI with --connect.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, also a broken one.

        Event callbacks are deregistered first: a libvirtd 9.0 was seen to crash when it had to do that itself for
        a client that was gone ("could not find event callback … for deletion").
        """
        with contextlib.suppress(libvirt.libvirtError):
            for callback in self._callbacks:
                self._connection.domainEventDeregisterAny(callback)
            if self._callbacks:
                self._connection.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def find(self, typed: str) -> str:
        """Return the UUID of a domain given by UUID, id or name, as virsh accepts it.

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
                f"{typed!r} is ambiguous, the id of one domain and the name of another: {' and '.join(uuids)}.",
                hint="Use the UUID.",
            )
        return uuids[0]

    def _domain(self, uuid: str) -> Any:  # noqa: ANN401 -- libvirt-python has no types
        """Look a domain up by its UUID only: another domain may be named like it."""
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
        near = did_you_mean(domain, self.names())
        return HypervisorError(
            f"libvirt at {self._uri} has no domain {domain!r}.", hint=f"{near}'virsh list --all' lists the domains."
        )

    def _failed(
        self, what: str, error: libvirt.libvirtError, *, otherwise: str = "", shown_by: str = ""
    ) -> HypervisorError:
        """Return the error for a call that failed.

        :param otherwise: Of a call that changes something: what is so if libvirt reported the failure itself.
        :param shown_by: The command that shows whether it did, if the connection broke before libvirt answered.
        """
        said = error.get_error_message()
        if _is_denied(error):
            return _denied(f"libvirt does not permit you this for {what}", error)
        if shown_by and self._is_broken(error):
            return HypervisorError(
                f"The connection to libvirt broke during a change of {what}: {said}.",
                hint=f"It cannot be known whether the change was made: {shown_by} shows it. Then try again.",
            )
        hint = f"{otherwise} Fix what libvirt reports, and try again.".lstrip()
        return HypervisorError(f"libvirt failed for {what}: {said}.", hint=hint)

    def _is_broken(self, error: libvirt.libvirtError) -> bool:
        """Return whether a call failed on its way, so that it may have been carried out."""
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() == libvirt.VIR_ERR_RPC:
            return True
        try:
            return not self._connection.isAlive()
        except libvirt.libvirtError:
            return True

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

    def names(self) -> list[str]:
        """Return the names of all domains; none where libvirt does not tell."""
        with contextlib.suppress(libvirt.libvirtError):
            return sorted(domain.name() for domain in self._connection.listAllDomains())
        return []

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

    def save(self, domain: str, path: Path) -> None:
        """Save a domain to a file, and end its QEMU; if that fails it runs on.

        From libvirt 11.2 on, qemu.conf may ask for a format that cannot be read from a FIFO.
        """
        found = self._domain(domain)
        image_format = getattr(libvirt, "VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT", None)
        try:
            if image_format is not None:
                found.saveParams({libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: str(path), image_format: "raw"}, 0)
            else:
                found.saveFlags(str(path), None, 0)
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def restore(self, path: Path) -> None:
        """Restore a domain from a file; its processors do not run yet."""
        try:
            self._connection.restoreFlags(str(path), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        except libvirt.libvirtError as error:
            raise self._failed("a restore", error) from error

    def destroy(self, domain: str) -> None:
        """End the QEMU of a domain; nothing if it has none."""
        found = self._looked_up(domain, lambda: self._connection.lookupByUUIDString(domain))
        try:
            if found is not None and found.isActive():
                found.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise self._failed(domain, error) from error

    def resume(self, domain: str) -> None:
        """Let the processors of a paused domain run; nothing if they do."""
        found = self._domain(domain)
        try:
            if found.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                found.resume()
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def was_saved(self, domain: str) -> bool:
        """Return whether a domain is shut off because it was saved to a file; false if it does not exist."""
        found = self._looked_up(domain, lambda: self._connection.lookupByUUIDString(domain))
        try:
            saved = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED)
            return found is not None and tuple(found.state()) == saved
        except libvirt.libvirtError as error:
            raise self._failed(domain, error) from error

    def remove_metadata(self, domain: str, namespace: str) -> None:
        """Remove an element of metadata from a running domain's live XML; one that is not there is fine."""
        kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        with contextlib.suppress(libvirt.libvirtError):
            self._domain(domain).setMetadata(kind, None, None, namespace, live)

    def require_machine(self, domain: str) -> None:
        """Require that the emulator of a domain, as it is on the disk now, has the domain's machine type.

        :raise DomainRefused: When it does not; with libvirt's own message.
        """
        found = self._domain(domain)
        try:
            root = DomainDocument(str(found.XMLDesc(0)).encode()).root
            machine = root.find("os/type")
            self._connection.getDomainCapabilities(
                root.findtext("devices/emulator"),
                None if machine is None else machine.get("arch"),
                None if machine is None else machine.get("machine"),
                root.get("type"),
            )
        except libvirt.libvirtError as error:
            if self._is_broken(error) or _is_denied(error):
                raise self._failed(domain, error) from error
            raise DomainRefused(
                f"The QEMU that domain {found.name()} would get cannot run it: {error.get_error_message()}.",
                hint="Keep its present QEMU until it is shut down, or install one that has its machine type.",
            ) from error

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
