# SPDX-License-Identifier: GPL-2.0-or-later
"""Export metrics for Prometheus: gauges, read at each scrape, and counters of what the daemon did.

Counters are in memory and start at 0 with each daemon, as Prometheus expects of a process. Each metric is described
in ``docs/reference/metrics.md``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from virt_dmem import __version__
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.config.schema import Config
from virt_dmem.errors import DmemError
from virt_dmem.host import dirfd
from virt_dmem.monitoring.alert_codes import EXPLANATIONS, HUGE_PAGES_LOWERED, HVO_SWITCHED, POOL_MOUNT_CHANGED
from virt_dmem.monitoring.alert_tracker import AlertTracker
from virt_dmem.pools.savings import savings

__all__ = ["Metrics", "write_textfile"]

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
"""Seconds, from linking a file to prefaulting terabytes."""


class Metrics:
    """The registry of one daemon; its members are the counters."""

    def __init__(self, config: Config, ledger: Ledger, prezero: PrezeroCache, alerts: AlertTracker) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(config, ledger, prezero, alerts))
        self._hook_seconds = Histogram(
            "virt_dmem_hook_seconds",
            "Duration of hook operations of domains with pool memory.",
            ["operation"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._refused = Counter(
            "virt_dmem_hook_refused",
            "Hook operations that failed, by error code: each is a start that libvirt aborted.",
            ["operation", "code"],
            registry=self._registry,
        )
        self.reconciled = Counter(
            "virt_dmem_reconcile_actions",
            "Corrections made by reconciliation, by the stage that found them (host, libvirt).",
            ["stage"],
            registry=self._registry,
        )
        self.applied = Counter(
            "virt_dmem_apply",
            "Domains considered for automatic apply, by outcome (applied, failed, fight).",
            ["outcome"],
            registry=self._registry,
        )
        self.put_right = Counter(
            "virt_dmem_host_repairs",
            "Changes of the host by others that were put right, or tried to, by the code of their alert.",
            ["code"],
            registry=self._registry,
        )
        for code in (HUGE_PAGES_LOWERED, HVO_SWITCHED, POOL_MOUNT_CHANGED):
            self.put_right.labels(code)
        for stage in ("host", "libvirt"):
            self.reconciled.labels(stage)
        for outcome in ("applied", "failed", "fight"):
            self.applied.labels(outcome)

    @contextmanager
    def hook(self, operation: str) -> Iterator[None]:
        """Measure a hook operation, and count it if it fails."""
        began = time.monotonic()
        try:
            yield
        except DmemError as error:
            self._refused.labels(operation, error.code).inc()
            raise
        finally:
            self._hook_seconds.labels(operation).observe(time.monotonic() - began)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """Gauges, read at each scrape."""

    def __init__(self, config: Config, ledger: Ledger, prezero: PrezeroCache, alerts: AlertTracker) -> None:
        self._config = config
        self._ledger = ledger
        self._prezero = prezero
        self._alerts = alerts

    def describe(self) -> Iterator[Metric]:
        """Return nothing: a registry would otherwise scrape at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read all gauges."""
        yield _gauge(
            "virt_dmem_build_info", "Always 1; the version of the daemon.", {("version",): {(__version__,): 1}}
        )
        yield _gauge(
            "virt_dmem_exposition_time_seconds", "Time when these metrics were read, since the epoch.", time.time()
        )
        yield _gauge("virt_dmem_libvirt_connected", "1 if libvirt answers, else 0.", int(self._alerts.connected))
        yield from self._pools()
        yield from self._savings()
        yield from self._domains()
        active = Count(alert.code for alert in self._alerts.refresh())
        by_code: dict[tuple[str, ...], float] = {(code,): active[code] for code in EXPLANATIONS}
        yield _gauge("virt_dmem_alerts", "Alerts that are active, by code.", {("code",): by_code})

    def _pools(self) -> Iterator[Metric]:
        views = self._prezero.pool_statuses()
        labels = ("pool", "node")
        for word, help_text in {
            "capacity": "Memory that a pool provides now; node is 'any' where its backend knows none.",
            "reserved": "Memory of a pool that domains hold.",
            "free": "Capacity less reserved, never below 0.",
        }.items():
            values: dict[tuple[str, ...], float] = {
                (pool.name, "any" if node.node < 0 else str(node.node)): getattr(node, f"{word}_bytes")
                for pool in views
                for node in pool.nodes
            }
            yield _gauge(f"virt_dmem_pool_{word}_bytes", help_text, {labels: values})
        ready: dict[tuple[str, ...], float] = {(pool.name,): pool.ready_bytes for pool in views}
        yield _gauge(
            "virt_dmem_pool_ready_bytes",
            "Free memory of a pool that is populated and zeroed ahead.",
            {("pool",): ready},
        )
        most: dict[tuple[str, ...], float] = {
            (pool.name,): pool.elastic.max_bytes if pool.elastic else pool.capacity_bytes for pool in views
        }
        yield _gauge(
            "virt_dmem_pool_max_bytes",
            "The most that a pool may have: of a fixed one its capacity.",
            {("pool",): most},
        )
        room: dict[tuple[str, ...], float] = {
            (pool.name,): pool.elastic.room_bytes if pool.elastic else 0 for pool in views
        }
        yield _gauge(
            "virt_dmem_pool_room_bytes",
            "How much an elastic pool may take now, beyond its capacity; 0 of a fixed one.",
            {("pool",): room},
        )
        states: dict[tuple[str, ...], float] = {(pool.name, pool.state): 1 for pool in views}
        yield _gauge(
            "virt_dmem_pool_state",
            "1 for the state of a pool: creating, mounting, ready, resizing, draining or destroying.",
            {("pool", "state"): states},
        )
        pinned: dict[tuple[str, ...], float] = {(pool.name,): pool.pinned_bytes for pool in views}
        yield _gauge(
            "virt_dmem_pinned_bytes",
            "Memory that guests gave back and that a process or device keeps pinned; not part of capacity.",
            {("pool",): pinned},
        )
        quarantined: Count[str] = Count({pool.name: 0 for pool in views})
        for extent in self._ledger.quarantined():
            quarantined[extent.segment.pool] += extent.size_bytes
        parked: Count[str] = Count({pool.name: 0 for pool in views})
        for uuid in self._ledger.all_parked():
            for extent in self._ledger.extents_of(uuid):
                parked[extent.segment.pool] += extent.size_bytes
        yield _gauge(
            "virt_dmem_parked_bytes",
            "Memory of guests that are saved, and that no QEMU has; part of reserved.",
            {("pool",): {(name,): size for name, size in parked.items()}},
        )
        yield _gauge(
            "virt_dmem_quarantined_bytes",
            "Memory of domains that have ended which a process still maps.",
            {("pool",): {(name,): size for name, size in quarantined.items()}},
        )

    def _savings(self) -> Iterator[Metric]:
        saved: Count[tuple[str, ...]] = Count()
        left: Count[tuple[str, ...]] = Count()
        for item in savings(self._config):
            key = (item.pool, "measured" if item.measured else "estimated")
            saved[key] += item.net_bytes
            left[key] += item.metadata_left_bytes
        labels = ("pool", "source")
        yield _gauge("virt_dmem_struct_page_saved_bytes", "Struct pages that a pool saves.", {labels: saved})
        yield _gauge("virt_dmem_struct_page_left_bytes", "Struct pages of a pool that remain.", {labels: left})

    def _domains(self) -> Iterator[Metric]:
        phases = Count(change.phase for change in self._ledger.phases().values())
        by_phase: dict[tuple[str, ...], float] = {(phase.value,): phases[phase] for phase in Phase}
        yield _gauge(
            "virt_dmem_domains",
            "Domains that hold memory, by phase: reserved, prepared, linked, running, stopped or parked.",
            {("phase",): by_phase},
        )


_Values = dict[tuple[str, ...], float] | Count[tuple[str, ...]]


def _gauge(name: str, help_text: str, value: float | dict[tuple[str, ...], _Values]) -> Metric:
    """Return a gauge: one number, or numbers by the values of the labels that are the key."""
    if not isinstance(value, dict):
        return GaugeMetricFamily(name, help_text, value=value)
    ((labels, values),) = value.items()
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for key, number in sorted(values.items()):
        family.add_metric(key, number)
    return family


def write_textfile(path: Path, text: bytes) -> None:
    """Replace a file (0644) that the node exporter may be reading; it reads only ``*.prom``.

    Its directory may belong to the exporter, which may put anything there, but cannot redirect the write elsewhere.
    For worker threads.

    :raise OSError: When its directory is missing or not writable.
    """
    fresh = f".{path.name}.new"
    with dirfd.opened(path.parent) as at:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=at)  # left by a killed daemon, or put there to be written to
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(text)
        os.replace(fresh, path.name, src_dir_fd=at, dst_dir_fd=at)
