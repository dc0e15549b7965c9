# SPDX-License-Identifier: GPL-2.0-or-later
"""Domain XML that comes from elsewhere, by migration or restore, made to fit this host.

Pure but for the pools' records. The hook's ``migrate`` and ``restore`` are the only operations at which libvirt
takes XML from it; what is persistent arrives past them, and follows what runs.
"""

from __future__ import annotations

from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory, is_managed, read_domain, require_possible, require_whole_pages
from virt_dmem.domain_xml.rewrite import apply, unapply
from virt_dmem.errors import DomainRefused, PoolNotFound
from virt_dmem.pools import registry
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord

__all__ = ["adapt", "follow", "is_known"]


def adapt(config: Config, xml: bytes) -> bytes:
    """Return the XML of a domain as it can run here; one that does not ask for pool memory stays as it is.

    A pool that is not here is replaced as ``[libvirt] incoming`` says. What the guest sees is not touched. Without
    any its memory is a file in libvirt's memory_backing_dir: libvirt lets its kind not change on the way.

    :raise PoolNotFound: When there is no pool for it, and it must not have ordinary memory.
    :raise DomainRefused: When its memory is no whole pages of the pool, or wants what the pool's cannot, likewise.
    """
    if not is_managed(xml):
        return xml
    domain = read_domain(xml)
    try:
        record = _choose(config, domain)
        require_whole_pages(domain.name, domain.cells, record.page_size)
        kind = backend(record.backend)
        require_possible(domain, record.pool, may_lock=kind.lockable, may_pin=kind.has_struct_pages)
    except (PoolNotFound, DomainRefused):
        if config.libvirt.incoming != "ordinary":
            raise
        return unapply(xml, keep_request=False, running=True)
    pool = domain.pool if is_known(config, domain.pool) else record.pool
    return apply(xml, pool=pool, templates_dir=Path(config.templates_dir))


def follow(config: Config, persistent: bytes, live: bytes) -> bytes:
    """Return the persistent XML of a domain that came in with a pool that is not here: as that which runs."""
    domain = read_domain(persistent)
    if not domain.managed or is_known(config, domain.pool):
        return persistent
    if not is_managed(live):
        return unapply(persistent, keep_request=False)
    running = read_domain(live)
    if not is_known(config, running.pool):
        return persistent
    return apply(persistent, pool=running.pool, templates_dir=Path(config.templates_dir))


def is_known(config: Config, pool: str) -> bool:
    """Tell whether there is such a pool; the empty name is that of the default pool, or of the only one."""
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
                f"Domain {domain.name} comes with pool {domain.pool!r}, which is not here, nor is a default.",
                hint="Make the pool, set default_pool, or let [libvirt] incoming be 'ordinary'.",
            ) from None
