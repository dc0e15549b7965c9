# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve the control socket's interface: each method calls the service, and converts the result to messages.

The only module outside ``ipc`` that knows the messages. (No postponed annotations here: asyncvarlink derives the
interface description from them.)
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any, cast

import msgspec

from virt_dmem.allocation.models import PoolStatus, Reservation, TimedStep
from virt_dmem.config.schema import digest
from virt_dmem.daemon.domain_list import DomainList
from virt_dmem.daemon.reconciler import Reconciler
from virt_dmem.daemon.service import Service
from virt_dmem.domains.device_ops import DeviceChange
from virt_dmem.domains.extents import ReportProgress, StepProgress
from virt_dmem.domains.parked.parking import ParkedChange
from virt_dmem.hypervisor.qmp import QemuMemoryBackend
from virt_dmem.ipc.interface import Interface, method
from virt_dmem.ipc.messages import (
    AlertView,
    AttachWish,
    BackendView,
    ChangeReply,
    ChangeView,
    DomainView,
    ElasticView,
    EventView,
    ExtentView,
    HookReply,
    Link,
    NewsView,
    NodeView,
    ParkedView,
    ParkReply,
    PoolView,
    SegmentView,
    StepView,
)

__all__ = ["ControlInterface", "domain_json"]


class ControlInterface(Interface):
    """Serve the calls of the hook and of the command line."""

    def __init__(self, service: Service, reconciler: Reconciler, domain_list: DomainList) -> None:
        super().__init__()
        self._service = service
        self._reconciler = reconciler
        self._domain_list = domain_list

    @method(returns="reply")
    async def Hook(  # noqa: N802
        self, *, operation: str, xml: str, began: float | None = None
    ) -> AsyncIterator[HookReply]:
        """Run a hook operation: progress replies while it runs, then the links to verify.

        ``began``: when the hook did, in seconds since the epoch.
        """

        async def run(report: Callable[[HookReply], None]) -> HookReply:
            links = await self._service.hook(
                operation, xml.encode(), lambda step: report(_hook_progress(step)), began
            )
            found = [Link(**asdict(link)) for link in links]
            return HookReply(done=True, message="", done_bytes=0, total_bytes=0, links=found)

        # a caller that is gone (libvirtd was killed, a deadline passed): roll back rather than keep the memory
        async for reply in self.calls.stream(run, cancel_when_gone=operation == "prepare"):
            yield reply

    @method(returns="reply")
    async def Attach(self, *, wish: AttachWish) -> AsyncIterator[ChangeReply]:  # noqa: N802
        """Attach a memory device to a running domain: progress replies, then the outcome."""
        async for reply in self._change(lambda report: self._service.attach(**asdict(wish), report=report)):
            yield reply

    @method(returns="reply")
    async def Detach(self, *, domain: str, alias: str, wait: float) -> AsyncIterator[ChangeReply]:  # noqa: N802
        """Ask a guest to hot-unplug a memory device: progress replies, then the outcome."""
        async for reply in self._change(lambda report: self._service.detach(domain, alias, wait, report)):
            yield reply

    @method(returns="reply")
    async def Resize(  # noqa: N802
        self, *, domain: str, alias: str, size_bytes: int, wait: float
    ) -> AsyncIterator[ChangeReply]:
        """Ask a guest to plug or unplug blocks of virtio-mem: progress replies, then the outcome."""
        async for reply in self._change(
            lambda report: self._service.resize(domain, alias, size_bytes, wait, report)
        ):
            yield reply

    async def _change(
        self, start: Callable[[ReportProgress], Coroutine[Any, Any, DeviceChange]]
    ) -> AsyncIterator[ChangeReply]:
        async def run(report: Callable[[ChangeReply], None]) -> ChangeReply:
            change = await start(
                lambda step: report(ChangeReply(False, step.message, step.done_bytes, step.total_bytes, None))
            )
            return ChangeReply(True, "", 0, 0, ChangeView(**asdict(change)))

        async for reply in self.calls.stream(run, heartbeat=ChangeReply(False, "waiting for libvirt", 0, 0, None)):
            yield reply

    @method(returns="reply")
    async def Park(self, *, domain: str) -> AsyncIterator[ParkReply]:  # noqa: N802
        """Save a running domain, and keep its memory in the pool: progress replies, then the outcome."""
        async for reply in self._parked(lambda report: self._service.park(domain, report)):
            yield reply

    @method(returns="reply")
    async def Unpark(self, *, domain: str, discard: bool) -> AsyncIterator[ParkReply]:  # noqa: N802
        """Restore a parked domain, or give it up: progress replies, then the outcome."""
        async for reply in self._parked(lambda report: self._service.unpark(domain, report, discard=discard)):
            yield reply

    @method(returns="reply")
    async def Refresh(self, *, domain: str, dry_run: bool) -> AsyncIterator[ParkReply]:  # noqa: N802
        """Replace the QEMU of a running domain: progress replies, then the outcome."""
        async for reply in self._parked(lambda report: self._service.refresh(domain, report, dry_run=dry_run)):
            yield reply

    async def _parked(
        self, start: Callable[[ReportProgress], Coroutine[Any, Any, ParkedChange]]
    ) -> AsyncIterator[ParkReply]:
        async def run(report: Callable[[ParkReply], None]) -> ParkReply:
            change = await start(lambda step: report(ParkReply(False, step.message, None)))
            return ParkReply(True, "", ParkedView(**asdict(change)))

        async for reply in self.calls.stream(run, heartbeat=ParkReply(False, "waiting for libvirt", None)):
            yield reply

    @method(returns="xml")
    async def FilterXml(self, *, xml: str) -> str:  # noqa: N802
        """Return the XML of an incoming domain, by migration or restore, adapted to this host."""
        return (await self.calls.run(self._service.filter_xml(xml.encode()))).decode()

    @method(returns="domains")
    async def ListDomains(self) -> list[DomainView]:  # noqa: N802
        """Return every domain that holds memory, without steps."""
        return cast("list[DomainView]", msgspec.Raw(await self._domain_list.json()))

    @method(returns="domain")
    def ShowDomain(self, *, domain: str) -> DomainView:  # noqa: N802
        """Return one domain, by name or UUID, with the timing of its last start."""
        return _domain(*self._service.show_domain(domain))

    @method(returns="backends")
    async def ShowBackends(self, *, domain: str) -> list[BackendView]:  # noqa: N802
        """Return QEMU's memory backends of a domain (UUID); empty where its monitor does not answer."""
        return [*map(_backend, await self.calls.run(self._service.show_backends(domain)))]

    @method(returns="digest")
    def ShowConfig(self) -> str:  # noqa: N802
        """Return the digest of the configuration that is in force."""
        return digest(self._service.config)

    @method(returns="pools")
    def ListPools(self) -> list[PoolView]:  # noqa: N802
        """Return every pool, with its reserved memory."""
        return [*map(_pool, self._service.list_pools())]

    @method()
    async def RefreshPools(self, *, name: str | None = None) -> None:  # noqa: N802
        """Read the records of the pools again, after one (``name``) was created, changed or destroyed."""
        await self.calls.run(self._service.refresh_pools())

    @method()
    def EmptyPool(self, *, name: str) -> None:  # noqa: N802
        """Stop allocating from a pool whose caller waits for it to become empty, to destroy it.

        In force until the caller closes the connection, or dies.
        """
        self._service.empty_pool(name, self.calls.caller(self._service.drop_claims))

    @method()
    async def RetirePool(self, *, name: str) -> None:  # noqa: N802
        """Stop allocating from a pool that is about to be destroyed; fail if it is in use.

        In force until the caller closes the connection, or dies.
        """
        await self.calls.run(self._service.retire_pool(name, self.calls.caller(self._service.drop_claims)))

    @method(returns="reserved_bytes")
    async def LimitPool(self, *, name: str, size_bytes: int) -> int:  # noqa: N802
        """Allocate no more than ``size_bytes`` of a pool that is about to shrink; return what is reserved.

        In force until the caller closes the connection, or dies; not at all if more is reserved.
        """
        holder = self.calls.caller(self._service.drop_claims)
        return await self.calls.run(self._service.limit_pool(name, size_bytes, holder))

    @method()
    def DrainPool(self, *, name: str, undo: bool) -> None:  # noqa: N802
        """Stop allocating from a pool, or resume; persists until changed again."""
        self._service.drain_pool(name, undo=undo)

    @method(returns="alerts")
    def ListAlerts(self) -> list[AlertView]:  # noqa: N802
        """Return the active alerts."""
        return [AlertView(**asdict(alert)) for alert in self._service.alerts.refresh()]

    @method(returns="news")
    def ListEvents(self, *, after: int) -> NewsView:  # noqa: N802
        """Return what happened after an event (its number); -1: nothing, only the number to ask with."""
        news = self._service.events.since(after)
        return NewsView([EventView(**asdict(event)) for event in news.events], news.next, news.missed)

    @method(returns="text")
    def ShowMetrics(self) -> str:  # noqa: N802
        """Return all metrics in Prometheus' text format."""
        return self._service.metrics.exposition().decode()

    @method()
    def PauseApply(self, *, seconds: float) -> None:  # noqa: N802
        """Pause automatic apply; 0: until ResumeApply."""
        self._service.pause_apply(seconds)

    @method()
    def ResumeApply(self) -> None:  # noqa: N802
        """Resume automatic apply, also for domains defined meanwhile."""
        self._service.resume_apply()

    @method(returns="actions")
    async def Reconcile(self, *, dry_run: bool) -> list[str]:  # noqa: N802
        """Reconcile the ledger with pools and running domains; return what was done."""
        return await self.calls.run(self._reconciler.run(dry_run=dry_run))


def domain_json(held: Reservation) -> bytes:
    """Return a domain as encoded in the reply of ``ListDomains``."""
    return msgspec.json.encode(_domain(held))


def _domain(held: Reservation, steps: Sequence[TimedStep] = ()) -> DomainView:
    return DomainView(
        uuid=held.uuid,
        name=held.name,
        phase=held.phase.value,
        since=held.since,
        reserved_bytes=held.size_bytes,
        extents=[
            ExtentView(
                alias=extent.alias,
                pool=extent.segment.pool,
                path=str(extent.path),
                size_bytes=extent.size_bytes,
                page_size=extent.page_size,
                policy=extent.policy,
                nodes=list(extent.nodes),
                state=extent.state.value,
            )
            for extent in held.extents
        ],
        steps=[StepView(step.step, step.at, step.seconds) for step in steps],
        state_file=held.state_file,
    )


def _pool(status: PoolStatus) -> PoolView:
    nodes = [NodeView(**asdict(node)) for node in status.nodes]
    segments = [SegmentView(**asdict(segment)) for segment in status.segments]
    elastic = ElasticView(**asdict(status.elastic)) if status.elastic else None
    return PoolView(**asdict(status) | {"nodes": nodes, "segments": segments, "elastic": elastic})


def _backend(backend: QemuMemoryBackend) -> BackendView:
    return BackendView(**asdict(backend) | {"host_nodes": list(backend.host_nodes)})


def _hook_progress(step: StepProgress) -> HookReply:
    return HookReply(
        done=False, message=step.message, done_bytes=step.done_bytes, total_bytes=step.total_bytes, links=[]
    )
