# SPDX-License-Identifier: GPL-2.0-or-later
"""Define domains in libvirt's own test driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from virt_dmem.hypervisor.session import Session

__all__ = ["OURS", "THEIRS", "define", "domain_named_as_a_uuid"]

OURS = "c7a5fdbd-edaf-9455-926a-d65c16db1809"

THEIRS = "5b7e6f3c-0000-4000-8000-000000000001"
"""The name of the domain ``OURS``."""


def define(connection: libvirt.virConnect, uuid: str, name: str) -> libvirt.virDomain:
    """Define a domain."""
    return connection.defineXML(
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>"
        "<os><type>hvm</type></os></domain>"
    )


@contextmanager
def domain_named_as_a_uuid(session: Session) -> Iterator[None]:
    """Have a domain that is named as the UUID of one that does not exist (any more)."""
    define(session._connection, OURS, THEIRS)
    yield
    session._connection.lookupByUUIDString(OURS).undefine()
