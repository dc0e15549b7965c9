# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite a domain's XML for a pool of this host: choose the pool, check it, set monitor and templates.

``virt-dmem apply`` and ``rewrite``, automatic apply and incoming migration all rewrite through this module. Nothing
but the pools' records is read, and nothing is written.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virt_dmem.allocation.plan import PoolFree, plan_domain
from virt_dmem.allocation.remembered import Remembered
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml import rewrite
from virt_dmem.domain_xml.adoption.adopt import rule_of
from virt_dmem.domain_xml.monitor import has_monitor
from virt_dmem.domain_xml.pinning import may_run_guests
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.domain_xml.traces import Trace, find_trace, has_record, put_back, remove_traces
from virt_dmem.errors import DomainRefused, DomainXmlInvalid, NotEnoughMemory, PoolError, PoolNotFound
from virt_dmem.host import kernel, numa
from virt_dmem.hypervisor.remedies import is_transient
from virt_dmem.pools import registry
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.elastic.room import limits_of
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = [
    "ApplyOptions",
    "Fitting",
    "XmlChange",
    "adopted_by",
    "apply",
    "apply_if_requested",
    "apply_incoming",
    "apply_offline",
    "doubt",
    "is_lost",
    "name_pool",
    "never_fits",
    "recovered",
    "request_lost",
]


@dataclass(frozen=True)
class ApplyOptions:
    """The choices that a caller has."""

    pool: str = ""
    """Empty: the pool that the XML requests, else the default pool."""
    hotplug_max: int | None = None
    """Bytes of memory that the domain may have in all, with memory attached later; None: as before."""
    no_monitor: bool = False
    """Without the second QMP monitor, whatever the configuration says."""


@dataclass(frozen=True)
class XmlChange:
    """A domain's XML before and after it was rewritten."""

    before: bytes
    after: bytes

    @property
    def is_any(self) -> bool:
        """Whether they differ at all."""
        return self.before != self.after

    @property
    def adds_monitor(self) -> bool:
        """Whether QEMU gets a second monitor by it."""
        return has_monitor(self.after) and not has_monitor(self.before)


def apply(config: Config, xml: bytes, options: ApplyOptions | None = None) -> bytes:
    """Return ``xml`` rewritten for a pool of this host, after checking that the domain can run on it.

    :raise PoolNotFound: When there is no such pool, or no way to tell which one.
    :raise DomainRefused: When the domain's memory cannot come from that pool.
    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    :raise ConfigError: When a template cannot be used.
    """
    options = options or ApplyOptions()
    requested = DomainDocument(xml).memory().pool
    record = registry.choose(config, options.pool or requested)
    return _rewrite_for(config, xml, record, options)


def apply_if_requested(config: Config, xml: bytes) -> bytes:
    """Return ``xml`` rewritten if it requests pool memory and is not rewritten yet, else as it is.

    :raise DmemError: As ``apply`` does.
    """
    domain = DomainDocument(xml).memory()
    return apply(config, xml) if domain.managed and not domain.applied else xml


def apply_offline(config: Config, xml: bytes, options: ApplyOptions) -> tuple[bytes, str]:
    """Return ``xml`` rewritten, perhaps for another host or for a pool yet to be created, and its unchecked needs.

    Where the pool's record can be read, locked memory and memory that must be pinned are checked, and nothing is
    left unchecked; sizes and machine types are not checked at all.

    :raise DomainRefused: When the domain's memory cannot come from that pool, or from any.
    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    :raise ConfigError: When a template cannot be used.
    """
    try:
        record = registry.choose(config, options.pool or rewrite.request_of(xml))
    except (PoolError, OSError):  # also a record that cannot be read
        record = None
    rewritten = _rewrite_for(config, xml, record, options, check_sizes=False)
    return rewritten, "" if record else rewrite.doubtful(xml)


def apply_incoming(config: Config, xml: bytes, record: PoolRecord, pool: str) -> bytes:
    """Return the XML of a domain that comes from another host rewritten for a pool of this one.

    Nothing that its guest sees changes, nor whether it has a monitor. ``pool``: the name to put into the request.

    :raise DomainRefused: When the domain's memory cannot come from that pool.
    """
    return _rewrite(config, xml, record, pool=pool)


def adopted_by(config: Config, xml: bytes) -> str:
    """Return the label of the rule that adopts a domain, so that it needs no rewrite; empty: it is not adopted.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    return rule_of(config.adopt, DomainDocument(xml).root) if config.adopt else ""


def is_lost(trace: Trace, remembered: bytes) -> bool:
    """Return whether a domain without a request would start on a file: it was rewritten, and lost its request.

    ``remembered``: its request as it is remembered; others write the same memory backing themselves.
    """
    return trace is Trace.MONITOR or (trace is Trace.BACKING and bool(remembered))


def request_lost(uuid: str, name: str, trace: Trace) -> DomainRefused:
    """Return the error for a domain that was rewritten and has lost its request."""
    so = (
        "what is left is virt-dmem's monitor"
        if trace is Trace.MONITOR_ALONE
        else "its memory would be a file in libvirt's memory_backing_dir"
    )
    return DomainRefused(
        f"Domain {name} was rewritten for memory from a pool, and its request for that was removed: {so}.",
        hint=(
            "It is transient: pipe the XML from which it is created through 'virt-dmem rewrite' if it is to have"
            " pool memory, else through 'virt-dmem rewrite --undo'."
            if is_transient(name)
            else f"Run 'virt-dmem apply {uuid}' if it is to have pool memory, else 'virt-dmem unapply {uuid}'."
        ),
    )


def recovered(config: Config, xml: bytes) -> bytes:
    """Return XML with what another tool removed, or replaced, of a request, or without its traces; else as it is.

    The request is put back as far as it is remembered on this host and may be read.

    :raise DomainXmlInvalid: When ``xml`` is no domain XML.
    """
    trace = find_trace(xml)
    if trace is Trace.NONE:
        return xml
    uuid = ""
    with suppress(DomainXmlInvalid):  # XML that is not defined yet may have none
        uuid = DomainDocument(xml).uuid()
    request = Remembered(config.daemon.state_dir).find(uuid)
    if trace is Trace.NEW_REQUEST:
        if has_record(request):
            return put_back(xml, request)
        return remove_traces(xml) if has_monitor(xml) else xml  # without a monitor all of it may be another's
    if trace is not Trace.MONITOR_ALONE and not is_lost(trace, request):
        return xml
    return put_back(xml, request) if request else remove_traces(xml)


def doubt(config: Config, xml: bytes) -> str:
    """Return what may not work for the domain of rewritten ``xml`` on its pool; empty if nothing is known.

    :raise PoolNotFound: When there is no such pool.
    """
    document = DomainDocument(xml)
    unlikely = not may_run_guests(document.root) or not kernel.nested_guests_need_struct_pages()
    if unlikely or backend(registry.choose(config, document.memory().pool).backend).has_struct_pages:
        return ""
    return (
        "Its guest may run guests of its own, and on a pool without struct pages that fails here. To allow it, set"
        " the parameter kvm.allow_unsafe_mappings=1 (module kvm; it can be set when the module is loaded)."
    )


class Fitting:
    """Tell whether domains fit their pools if nobody else has memory of them; each pool's records are read once.

    Of an elastic pool that is what it may have at most, of each node as far as the host has memory there.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._empty: dict[str, PoolFree] = {}
        """Each pool, without any domain, by the name in a request."""
        self._limits: dict[str, ElasticLimits] = {}
        """Those of elastic pools, by the name in a request."""

    def require(self, memory: DomainMemory) -> None:
        """Require that a domain can be started on its pool, however long it waits.

        :raise PoolNotFound: When there is no such pool.
        :raise PoolError: When the pool is not set up.
        :raise NotEnoughMemory: When it is too large, for the pool or for the host nodes that it names.
        :raise DomainRefused: When its memory cannot come from that pool.
        """
        if memory.pool not in self._empty:
            self._empty[memory.pool] = self._look_up(memory.pool)
        empty, limits = self._empty[memory.pool], self._limits.get(memory.pool)
        try:
            plan = plan_domain(memory, {empty.name: empty}, empty.name)
            asked = sum(extent.size_bytes for extent in plan.extents)
            if limits and asked > limits.max_bytes:
                raise NotEnoughMemory(
                    f"It asks for {format_size(asked)}, and the elastic pool may have"
                    f" {format_size(limits.max_bytes)} at most.",
                    hint="",
                )
        except NotEnoughMemory as error:
            raise NotEnoughMemory(
                f"Domain {memory.name!r} cannot start as it is: it does not fit pool {empty.name} even if that is"
                f" empty. {error.message}",
                hint="Give it less memory or other host nodes, or make the pool larger.",
            ) from error

    def _look_up(self, name: str) -> PoolFree:
        segments = registry.segments(self._config, registry.choose(self._config, name).pool)
        first, kind = segments[0], backend(segments[0].backend)
        if not any(record.state == "ready" for record in segments):
            verb = "destroy" if first.state == "destroying" else "mount"
            raise PoolError(
                f"Pool {first.pool} is {first.state}: it gives no memory.",
                hint=f"Run 'virt-dmem pool {verb} {first.pool}', which reports the cause.",
            )
        has = {record.segment: _wanted(record) for record in segments}
        if limits := limits_of(first):
            self._limits[name] = limits
            has = {first.segment: _obtainable(first, limits)}
        return PoolFree(
            name=first.pool,
            backend=first.backend,
            page_size=first.page_size,
            segments=has,
            slow_nodes=numa.nodes_without_cpus(),
            may_lock=kind.lockable,
            may_pin=kind.has_struct_pages,
        )


def _wanted(record: PoolRecord) -> dict[int, int]:
    """Return the bytes by node that a segment is to have."""
    return {node: share.wanted_bytes for node, share in record.nodes.items()}


def _obtainable(record: PoolRecord, limits: ElasticLimits) -> dict[int, int]:
    """Return the bytes by node that the elastic pool of a segment could have on a host that does nothing else."""
    page = record.page_size
    return {
        node.node: min(limits.max_bytes, node.memory.total_bytes) // page * page
        for node in numa.nodes()
        if node.node in record.nodes
    }


def never_fits(config: Config, xml: bytes) -> str:
    """Return why the domain of rewritten ``xml`` cannot start on its pool even if that is empty; empty: it can.

    :raise PoolNotFound: When there is no such pool.
    """
    memory = DomainDocument(xml).memory()
    cannot = f"Domain {memory.name!r} cannot start"
    try:
        Fitting(config).require(memory)
    except NotEnoughMemory as error:
        return error.message
    except DomainRefused as error:
        return f"{cannot} as it is: {error.message}"
    except PoolNotFound:
        raise
    except PoolError as error:
        return f"{cannot} now: {error.message} {error.hint}"
    return ""


def name_pool(config: Config, xml: bytes, pool: str) -> bytes:
    """Return rewritten XML with another pool in its request, unchecked: its domain runs on that pool already."""
    return _rewrite(config, xml, None, pool=pool)


def _rewrite_for(
    config: Config, xml: bytes, record: PoolRecord | None, options: ApplyOptions, *, check_sizes: bool = True
) -> bytes:
    return _rewrite(
        config,
        xml,
        record,
        pool=options.pool,
        check_sizes=check_sizes,
        hotplug_max=options.hotplug_max,
        monitor=False if options.no_monitor else config.libvirt.monitor or None,
    )


def _rewrite(
    config: Config,
    xml: bytes,
    record: PoolRecord | None,
    *,
    pool: str,
    check_sizes: bool = True,
    hotplug_max: int | None = None,
    monitor: bool | None = None,
) -> bytes:
    """Rewrite for the pool of ``record``; without one nothing that depends on the pool is checked."""
    kind = backend(record.backend) if record else None
    return rewrite.apply(
        xml,
        pool=pool,
        pool_name=record.pool if record else "",
        page_size=record.page_size if record and check_sizes else None,
        may_lock=kind is None or kind.lockable,
        may_pin=kind is None or kind.has_struct_pages,
        hotplug_max=hotplug_max,
        monitor=monitor,
        templates_dir=Path(config.templates_dir),
    )
