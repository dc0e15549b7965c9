# SPDX-License-Identifier: GPL-2.0-or-later
"""Save a domain and restore it, with its memory left where it is: the calls of libvirt that parking needs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import libvirt

from virt_dmem.domain_xml.reader import DomainDocument
from virt_dmem.errors import DomainRefused
from virt_dmem.hypervisor.session import Session, is_denied

__all__ = ["Saving"]


class Saving(Session):
    """A connection by which domains are saved, restored, resumed and ended."""

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
            if self._is_broken(error) or is_denied(error):
                raise self._failed(domain, error) from error
            raise DomainRefused(
                f"The QEMU that domain {found.name()} would get cannot run it: {error.get_error_message()}.",
                hint="Keep its present QEMU until it is shut down, or install one that has its machine type.",
            ) from error
