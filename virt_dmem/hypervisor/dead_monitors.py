# SPDX-License-Identifier: GPL-2.0-or-later
"""Remove the sockets of second monitors whose QEMU is gone: one that was killed leaves its socket behind.

Their directory belongs to QEMU's user, who may have put anything there under any name: only a socket that has the
name of a monitor and that nobody listens on is removed (see ``virt_dmem.host.dirfd``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress

from virt_dmem.domain_xml.monitor import socket_name, socket_of, sockets
from virt_dmem.host import dirfd, unix_socket

__all__ = ["found", "remove", "remove_unbound"]

_NAME = re.compile(r"libvirt-(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.qmp")


def remove(uuid: str) -> bool:
    """Remove the socket of a domain that has ended, unless somebody listens on it; return whether it is gone."""
    return bool(_remove([uuid]))


def found() -> set[str]:
    """Return the domains (UUIDs) that have a file with the name of a monitor."""
    return {match["uuid"] for match in map(_NAME.fullmatch, sockets()) if match}


def remove_unbound(uuids: Collection[str], *, dry_run: bool = False) -> list[str]:
    """Remove the sockets of domains that virt-dmem knows nothing of; return the domains of those that are gone.

    A QEMU that runs unknown to us, or is about to listen, is not connected to: its socket is bound.
    """
    bound = unix_socket.bound_paths()
    unbound = sorted(uuid for uuid in uuids if str(socket_of(uuid)) not in bound)
    return _remove(unbound, dry_run=dry_run)


def _remove(uuids: Collection[str], *, dry_run: bool = False) -> list[str]:
    if not uuids:
        return []
    with suppress(OSError), dirfd.opened(socket_of("").parent) as at:
        return [uuid for uuid in uuids if unix_socket.remove_dead(socket_name(uuid), at, dry_run=dry_run)]
    return []
