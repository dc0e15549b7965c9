# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapt domain XML from another host, by migration or restore, to this one.

Pure but for the pools' records. The hook's ``migrate`` and ``restore`` are the only operations at which libvirt
takes XML from it; the persistent XML arrives without a hook, and is adapted to the running domain afterwards.
"""

from __future__ import annotations

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domain_xml.rewrite import unapply
from virt_dmem.domains.apply import apply_incoming, name_pool
from virt_dmem.errors import DomainRefused, PoolNotFound
from virt_dmem.pools import registry
from virt_dmem.pools.record import PoolRecord

__all__ = ["adapt", "adapt_persistent", "is_known"]


def adapt(config: Config, xml: bytes) -> bytes:
    """Return the XML of an incoming domain as it can run here; unchanged if it does not ask for pool memory.

    A pool that is not on this host is replaced as ``[libvirt] incoming`` says. Nothing that the guest sees changes.
    Without any pool the memory is a file in libvirt's memory_backing_dir: libvirt does not let its kind change.

    :raise PoolNotFound: When there is no pool for it, and it must not have ordinary memory.
    :raise DomainRefused: When its memory cannot come from the pool, likewise.
    """
    document = DomainDocument(xml)
    if not document.is_managed():
        return xml
    try:
        domain = document.memory()
        record = _choose(config, domain)
        return apply_incoming(config, xml, record, domain.pool if is_known(config, domain.pool) else record.pool)
    except (PoolNotFound, DomainRefused):
        if config.libvirt.incoming != "ordinary":
            raise
        return unapply(xml, keep_request=False, running=True)


def adapt_persistent(config: Config, persistent: bytes, live: bytes) -> bytes:
    """Return the persistent XML of a domain that came with a pool not on this host, adapted to the live XML."""
    domain = DomainDocument(persistent).memory()
    if not domain.managed or is_known(config, domain.pool):
        return persistent
    running = DomainDocument(live)
    if not running.is_managed():
        return unapply(persistent, keep_request=False)
    pool = running.memory().pool
    return name_pool(config, persistent, pool) if is_known(config, pool) else persistent


def is_known(config: Config, pool: str) -> bool:
    """Return whether this host has a pool; the empty name is that of the default pool, or of the only one."""
    try:
        registry.choose(config, pool)
    except PoolNotFound:
        return False
    return True


def _choose(config: Config, domain: DomainMemory) -> PoolRecord:
    try:
        return registry.choose(config, domain.pool)
    except PoolNotFound:
        if config.libvirt.incoming == "refuse" or not domain.pool:
            raise
        try:
            return registry.choose(config, "")
        except PoolNotFound:
            raise PoolNotFound(
                f"Domain {domain.name} comes with pool {domain.pool!r}, which is not on this host, and there is no"
                " default pool.",
                hint="Create the pool, set default_pool, or set [libvirt] incoming to 'ordinary'.",
            ) from None
