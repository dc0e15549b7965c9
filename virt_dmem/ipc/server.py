# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's server side: who may call, what can be called, how an error goes back.

Varlink by asyncvarlink. A caller is known by SO_PEERCRED when it connects: root may do all, members of the
daemon's group may read, nobody else gets an answer. (No postponed annotations here: the interface description
is derived from them.)
"""

import asyncio
import grp
import logging
import pwd
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

import msgspec
from asyncvarlink import (
    LastResult,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    VarlinkTransport,
    varlinkmethod,
    varlinksignature,
)
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from virt_dmem import __version__
from virt_dmem.aio import cancel_and_wait
from virt_dmem.errors import DmemError
from virt_dmem.ipc.connection import Connection, caller
from virt_dmem.ipc.messages import (
    INTERFACE,
    AlertView,
    AttachWish,
    BackendView,
    ChangeReply,
    ChangeView,
    DomainView,
    HookReply,
    Link,
    PoolView,
)
from virt_dmem.ipc.readers import REST, Readers
from virt_dmem.rate_limit import RateLimitedLog

__all__ = ["ControlServer", "Work"]

log = logging.getLogger(__name__)
say = RateLimitedLog(log)

T = TypeVar("T")

_PEERCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59
"""<asm-generic/socket.h>, since Linux 4.13; Python has no name for it."""

CONNECTIONS = 256
"""Of root at a time. Each takes two file descriptors, of the 1024 that a service has."""
ACCEPT_AT_ONCE = 64
READERS_AT_ONCE = 16
"""So many callers are let in or turned away before others have their turn."""
HEARTBEAT_SECONDS = 5.0
"""How often who waits for a change hears that it still goes on; clients give up after 30 s of silence."""
GOODBYE_SECONDS = 1.0
"""So long at most virt-dmemd, at its end, waits for callers to take its last answer."""
PAUSE_SECONDS = 0.5
"""How long nobody is let in when file descriptors or memory have run out."""


class Handler(Protocol):
    """Who does what is asked; any ``DmemError`` it raises goes back to the caller."""

    async def hook(
        self, operation: str, xml: bytes, report: Callable[[HookReply], None], began: float | None, /
    ) -> list[Link]:
        """Serve one hook operation, whose hook began then."""

    async def filter_xml(self, xml: bytes, /) -> bytes:
        """Return the XML of a domain that comes here as it can run here."""

    async def attach(self, wish: AttachWish, report: Callable[[ChangeReply], None], /) -> ChangeView:
        """Give a domain that runs a memory device."""

    async def detach(
        self, domain: str, alias: str, wait_seconds: float, report: Callable[[ChangeReply], None], /
    ) -> ChangeView:
        """Ask a guest to let go of a memory device."""

    async def resize(
        self,
        domain: str,
        alias: str,
        size_bytes: int,
        wait_seconds: float,
        report: Callable[[ChangeReply], None],
        /,
    ) -> ChangeView:
        """Have a guest plug or unplug blocks of virtio-mem."""

    async def list_domains(self) -> bytes:
        """Return every domain that holds memory, as the JSON of a list of ``DomainView``."""

    def show_domain(self, domain: str, /) -> DomainView:
        """Return one domain, by name or UUID."""

    async def show_backends(self, domain: str, /) -> list[BackendView]:
        """Return what QEMU says of a domain's memory backends."""

    def list_pools(self) -> list[PoolView]:
        """Return every pool."""

    async def refresh_pools(self) -> None:
        """Read the records of the pools again."""

    async def retire_pool(self, name: str, /) -> None:
        """Give no more memory from a pool, or refuse."""

    def drain_pool(self, name: str, /, *, undo: bool) -> None:
        """Give no more memory from a pool, or give it again."""

    async def reconcile(self, *, dry_run: bool) -> list[str]:
        """Mend, and return what was done."""

    def list_alerts(self) -> list[AlertView]:
        """Return what is not as it should be now."""

    def show_metrics(self) -> str:
        """Return all metrics in Prometheus' text format."""

    def pause_apply(self, seconds: float, /) -> None:
        """Apply no domain without being asked to, for so long (0: for ever)."""

    def resume_apply(self) -> None:
        """Apply domains again."""


class Work:
    """What callers wait for, each in a task of ours: asyncvarlink's own are not to be cancelled."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Task[Any], asyncio.Task[Any] | None] = {}
        self._given_up = False

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin what the call that is being served asks for; once all was given up, it is cancelled unbegun."""
        task = asyncio.create_task(work)
        if self._given_up:
            task.cancel()
        self._waits[task] = asyncio.current_task()
        task.add_done_callback(self._waits.pop)
        return task

    async def give_up(self) -> None:
        """Cancel all of it; returns when it has ended and its callers were told."""
        self._given_up = True
        callers = [*filter(None, self._waits.values())]
        await cancel_and_wait(self._waits)
        if callers:
            await asyncio.wait(callers, timeout=GOODBYE_SECONDS)


async def _outcome(task: asyncio.Task[T]) -> T:
    """Return what a task that is at its end made.

    :raise DmemError: What it raised, or that it was cancelled, as its caller is gone or virt-dmemd ends: a
        CancelledError would end asyncvarlink's work on the connection, and it would never be closed.
    """
    if not task.done():
        await asyncio.wait({task})
    if task.cancelled():
        raise DmemError("virt-dmemd ends, and gave this up.", hint="Ask again when 'virt-dmem check' finds it.")
    return task.result()


class ControlInterface(VarlinkInterface, name=INTERFACE):
    """What the hook and the command may ask."""

    def __init__(self, handler: Handler, work: Work) -> None:
        self._handler = handler
        self._work = work

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Hook(  # noqa: N802
        self, *, operation: str, xml: str, began: float | None = None
    ) -> AsyncIterator[HookReply]:
        """Serve a hook operation: progress replies while it works, then the links to check.

        ``began``: when the hook did, in seconds since the epoch.
        """
        reports: asyncio.Queue[HookReply | None] = asyncio.Queue()
        task = self._work.begin(self._handler.hook(operation, xml.encode(), reports.put_nowait, began))
        task.add_done_callback(lambda _: reports.put_nowait(None))
        if operation == "prepare":
            # nobody waits for it any more (a killed libvirtd, a deadline): roll back rather than hold memory
            caller.get().when_gone(task.cancel)
        while (report := await reports.get()) is not None:
            yield report
        links = await _outcome(task)
        raise LastResult(HookReply(done=True, message="", done_bytes=0, total_bytes=0, links=links))

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Attach(self, *, wish: AttachWish) -> AsyncIterator[ChangeReply]:  # noqa: N802
        """Give a domain that runs a memory device: progress replies, then what became of it."""
        async for reply in self._change(lambda report: self._handler.attach(wish, report)):
            if reply.done:
                raise LastResult(reply)
            yield reply

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Detach(self, *, domain: str, alias: str, wait: float) -> AsyncIterator[ChangeReply]:  # noqa: N802
        """Ask a guest to let go of a memory device: progress replies, then what became of it."""
        async for reply in self._change(lambda report: self._handler.detach(domain, alias, wait, report)):
            if reply.done:
                raise LastResult(reply)
            yield reply

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Resize(  # noqa: N802
        self, *, domain: str, alias: str, size_bytes: int, wait: float
    ) -> AsyncIterator[ChangeReply]:
        """Have a guest plug or unplug blocks of virtio-mem: progress replies, then what became of it."""
        async for reply in self._change(
            lambda report: self._handler.resize(domain, alias, size_bytes, wait, report)
        ):
            if reply.done:
                raise LastResult(reply)
            yield reply

    @varlinkmethod(return_parameter="xml")
    async def FilterXml(self, *, xml: str) -> str:  # noqa: N802
        """Return the XML of a domain that comes here, by migration or restore, as it can run here."""
        return (await _outcome(self._work.begin(self._handler.filter_xml(xml.encode())))).decode()

    @varlinkmethod(return_parameter="domains")
    async def ListDomains(self) -> list[DomainView]:  # noqa: N802
        """Every domain that holds memory, without steps."""
        return cast("list[DomainView]", msgspec.Raw(await self._handler.list_domains()))

    @varlinkmethod(return_parameter="domain")
    def ShowDomain(self, *, domain: str) -> DomainView:  # noqa: N802
        """One domain, by name or UUID, also the timing of its last start."""
        return self._handler.show_domain(domain)

    @varlinkmethod(return_parameter="backends")
    async def ShowBackends(self, *, domain: str) -> list[BackendView]:  # noqa: N802
        """Return what QEMU says of a domain's memory backends; empty where its monitor does not answer."""
        return await _outcome(self._work.begin(self._handler.show_backends(domain)))

    @varlinkmethod(return_parameter="pools")
    def ListPools(self) -> list[PoolView]:  # noqa: N802
        """Every pool, with what is reserved of it."""
        return self._handler.list_pools()

    @varlinkmethod
    async def RefreshPools(self) -> None:  # noqa: N802
        """Read the records of the pools again: one was made or destroyed."""
        await _outcome(self._work.begin(self._handler.refresh_pools()))

    @varlinkmethod
    async def RetirePool(self, *, name: str) -> None:  # noqa: N802
        """Give no more memory from a pool that is about to be destroyed, or refuse as it is in use."""
        await _outcome(self._work.begin(self._handler.retire_pool(name)))

    @varlinkmethod
    def DrainPool(self, *, name: str, undo: bool) -> None:  # noqa: N802
        """Give no more memory from a pool, or give it again; holds until it is said otherwise."""
        self._handler.drain_pool(name, undo=undo)

    @varlinkmethod(return_parameter="alerts")
    def ListAlerts(self) -> list[AlertView]:  # noqa: N802
        """Everything that is not as it should be now."""
        return self._handler.list_alerts()

    @varlinkmethod(return_parameter="text")
    def ShowMetrics(self) -> str:  # noqa: N802
        """All metrics in Prometheus' text format."""
        return self._handler.show_metrics()

    @varlinkmethod
    def PauseApply(self, *, seconds: float) -> None:  # noqa: N802
        """Apply no domain without being asked to, for so long; 0: until ResumeApply."""
        self._handler.pause_apply(seconds)

    @varlinkmethod
    def ResumeApply(self) -> None:  # noqa: N802
        """Apply domains again, also those that were defined meanwhile."""
        self._handler.resume_apply()

    @varlinkmethod(return_parameter="actions")
    async def Reconcile(self, *, dry_run: bool) -> list[str]:  # noqa: N802
        """Bring ledger, pools and live domains together again."""
        return await _outcome(self._work.begin(self._handler.reconcile(dry_run=dry_run)))

    async def _change(
        self, start: Callable[[Callable[[ChangeReply], None]], Coroutine[Any, Any, ChangeView]]
    ) -> AsyncIterator[ChangeReply]:
        """Yield the progress of a change, again and again while there is none, and at last what became of it."""
        reports: asyncio.Queue[ChangeReply | None] = asyncio.Queue()
        task = self._work.begin(start(reports.put_nowait))
        task.add_done_callback(lambda _: reports.put_nowait(None))
        caller.get().when_gone(task.cancel)
        last = ChangeReply(False, "waiting for libvirt", 0, 0, None)
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    report = await reports.get()
            except TimeoutError:
                report = last
            if report is None:
                break
            last = report
            yield report
        yield ChangeReply(True, "", 0, 0, await _outcome(task))


def _reply_by_msgspec(interface: type[VarlinkInterface]) -> None:
    """Leave it to msgspec (``ipc.connection.encoded``) to make JSON of what the methods return, all at once."""
    for method in vars(interface).values():
        if (signature := varlinksignature(method)) is not None:
            signature.return_type.tojson = lambda reply, _=None: reply


_reply_by_msgspec(ControlInterface)


class _Caller(socket.socket):
    """A connection whose ``repr`` costs nothing: a selector that does not know it yet makes one, for an error."""

    __repr__ = object.__repr__


class _Door:
    """A socket that listens, and who is let in there.

    :param at_once: So many are let in before others have their turn; when there are more, ``rest`` times as long as
        that took passes before the next.
    """

    def __init__(
        self, listener: socket.socket, let_in: Callable[[socket.socket], None], at_once: int, rest: float
    ) -> None:
        self._listener = listener
        self._let_in = let_in
        self._at_once = at_once
        self._rest = rest
        self._closed = False

    def open(self) -> None:
        """Let callers in from now on."""
        if not self._closed:
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True
        self._pause()

    def _pause(self, seconds: float | None = None) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.open)

    def _accept(self) -> None:
        began = time.perf_counter()
        try:
            for _ in range(self._at_once):
                self._let_in(_Caller(fileno=self._listener.accept()[0].detach()))
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:  # out of file descriptors or memory: it would be told again at once, for ever
            log.warning("nobody is let in for a while: %s", error.strerror)
            self._pause(PAUSE_SECONDS)
        else:
            if self._rest:
                self._pause(self._rest * (time.perf_counter() - began))


class ControlServer:
    """Accepts callers on two listening unix sockets: root's, and that of those who may only look."""

    def __init__(self, listener: socket.socket, readers: socket.socket, handler: Handler, group: str) -> None:
        self._group = group
        try:
            self._gid = grp.getgrnam(group).gr_gid
        except KeyError:
            self._gid = -1
        self._connections = 0
        self._registry = VarlinkInterfaceRegistry()
        self._registry.register_interface(
            VarlinkServiceInterface("virt-dmem", "virt-dmemd", __version__, "https://virt-dmem.dev", self._registry)
        )
        self._work = Work()
        self._registry.register_interface(ControlInterface(handler, self._work))
        self._readers = Readers(self._registry, self._in_group)
        self._doors = (
            _Door(listener, self._let_in, ACCEPT_AT_ONCE, rest=0),
            _Door(readers, self._let_in, READERS_AT_ONCE, rest=REST),
        )

    def start(self) -> None:
        """Answer from now on."""
        for door in self._doors:
            door.open()

    async def stop(self) -> None:
        """Accept nobody any more, and give up what goes on: those who wait for it hear so."""
        for door in self._doors:
            door.close()
        await self._work.give_up()
        await self._readers.close()

    def _let_in(self, connected: socket.socket) -> None:
        uid, gid = _credentials(connected)
        if uid == 0:
            self._serve(connected)
        else:
            self._readers.welcome(connected, uid, self._gid if self._gid in _more_groups(connected) else gid)

    def _serve(self, connected: socket.socket) -> None:
        """Serve root, or turn it away."""
        if self._connections >= CONNECTIONS:
            say(logging.WARNING, 0, "a caller was turned away: %d are there already", self._connections)
            connected.close()
            return

        def ended() -> None:
            self._connections -= 1

        connected.setblocking(False)
        try:
            connection = Connection(self._registry, connected, on_end=ended)
        except OSError as error:
            log.warning("a caller was turned away: %s", error.strerror)
            connected.close()
            return
        self._connections += 1
        VarlinkTransport(asyncio.get_running_loop(), connected, connected, connection)

    def _in_group(self, uid: int, gid: int) -> bool:
        try:
            group = grp.getgrnam(self._group)
            return gid == group.gr_gid or pwd.getpwuid(uid).pw_name in group.gr_mem
        except KeyError:
            return False


def _credentials(connected: socket.socket) -> tuple[int, int]:
    """Return user and group that the caller had when it connected."""
    _pid, uid, gid = _PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid, gid


def _more_groups(connected: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups that the caller had when it connected; none if there are more than 256."""
    try:
        found = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # ERANGE
        return ()
    return struct.unpack(f"{len(found) // 4}I", found)
