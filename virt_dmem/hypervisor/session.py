# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect to libvirt, look domains up there, and tell in our errors what it says.

Only the modules of this package import libvirt. Every call may wait for a domain's lock, and so for a hook that
waits for ``virt-dmemd``: the daemon calls from worker threads only, and holds no lock that a hook needs meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import libvirt

from virt_dmem.config.schema import AdoptRule
from virt_dmem.errors import DomainNotFound, HypervisorDenied, HypervisorError, UsageError
from virt_dmem.hypervisor.paths import DEFINITIONS_DIR
from virt_dmem.text import did_you_mean

__all__ = ["Session", "is_denied"]

_ID = re.compile(r"[0-9]{1,9}")
"""The id of a running domain: a positive int."""
_DENIED = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
)
"""Codes of libvirt that say who may not, rather than what cannot be done."""


def is_denied(error: libvirt.libvirtError) -> bool:
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


class Session:
    """A connection to libvirt; use it as a context manager. Methods take a domain's UUID; ``find`` returns it.

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
            if is_denied(error):
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

        :raise DomainNotFound: When there is none.
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

    def _unknown(self, domain: str) -> DomainNotFound:
        near = did_you_mean(domain, self.names())
        return DomainNotFound(
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
        if is_denied(error):
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

    def names(self) -> list[str]:
        """Return the names of all domains; none where libvirt does not tell."""
        with contextlib.suppress(libvirt.libvirtError):
            return sorted(domain.name() for domain in self._connection.listAllDomains())
        return []
