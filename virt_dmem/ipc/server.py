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
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Protocol

from asyncvarlink import (
    LastResult,
    TypedVarlinkErrorReply,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkTransport,
    varlinkmethod,
)
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.serviceinterface import VarlinkServiceInterface
from asyncvarlink.types import FileDescriptorArray

from virt_dmem import __version__
from virt_dmem.errors import DmemError, PermissionRefused
from virt_dmem.ipc.messages import INTERFACE, DomainView, HookReply, Link, PoolView

__all__ = ["ControlServer"]

log = logging.getLogger(__name__)

READ_METHODS = frozenset({"ListDomains", "ShowDomain", "ListPools", "GetInfo", "GetInterfaceDescription"})
_PEERCRED = struct.Struct("3i")


_caller: ContextVar["_Connection"] = ContextVar("caller")
"""Who is asking: set for each call, and inherited by the task that serves it."""


class Handler(Protocol):
    """Who does what is asked; any ``DmemError`` it raises goes back to the caller."""

    async def hook(self, operation: str, xml: bytes, report: Callable[[HookReply], None], /) -> list[Link]:
        """Serve one hook operation."""

    def list_domains(self) -> list[DomainView]:
        """Return every domain that holds memory."""

    def show_domain(self, domain: str, /) -> DomainView:
        """Return one domain, by name or UUID."""

    def list_pools(self) -> list[PoolView]:
        """Return every pool."""

    def refresh_pools(self) -> None:
        """Read the records of the pools again."""

    def retire_pool(self, name: str, /) -> None:
        """Give no more memory from a pool, or refuse."""

    async def reconcile(self, *, dry_run: bool) -> list[str]:
        """Mend, and return what was done."""


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """A ``DmemError``, on its way to whoever asked."""

    class Parameters:
        """Its stable code, what happened, what to do."""

        code: str
        message: str
        hint: str


class ControlInterface(VarlinkInterface, name=INTERFACE):
    """What the hook and the command may ask."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Hook(self, *, operation: str, xml: str) -> AsyncIterator[HookReply]:  # noqa: N802
        """Serve a hook operation: progress replies while it works, then the links to check."""
        reports: asyncio.Queue[HookReply | None] = asyncio.Queue()
        task = asyncio.create_task(self._handler.hook(operation, xml.encode(), reports.put_nowait))
        task.add_done_callback(lambda _: reports.put_nowait(None))
        if operation == "prepare":
            # nobody waits for it any more (a killed libvirtd, a deadline): roll back rather than hold memory
            _caller.get().when_gone(task.cancel)
        while (report := await reports.get()) is not None:
            yield report
        raise LastResult(HookReply(done=True, message="", done_bytes=0, total_bytes=0, links=await task))

    @varlinkmethod(return_parameter="domains")
    def ListDomains(self) -> list[DomainView]:  # noqa: N802
        """Every domain that holds memory."""
        return self._handler.list_domains()

    @varlinkmethod(return_parameter="domain")
    def ShowDomain(self, *, domain: str) -> DomainView:  # noqa: N802
        """One domain, by name or UUID, also the timing of its last start."""
        return self._handler.show_domain(domain)

    @varlinkmethod(return_parameter="pools")
    def ListPools(self) -> list[PoolView]:  # noqa: N802
        """Every pool, with what is reserved of it."""
        return self._handler.list_pools()

    @varlinkmethod
    def RefreshPools(self) -> None:  # noqa: N802
        """Read the records of the pools again: one was made or destroyed."""
        self._handler.refresh_pools()

    @varlinkmethod
    def RetirePool(self, *, name: str) -> None:  # noqa: N802
        """Give no more memory from a pool that is about to be destroyed, or refuse as it is in use."""
        self._handler.retire_pool(name)

    @varlinkmethod(return_parameter="actions")
    async def Reconcile(self, *, dry_run: bool) -> list[str]:  # noqa: N802
        """Bring ledger, pools and live domains together again."""
        return await self._handler.reconcile(dry_run=dry_run)


class _Connection(VarlinkInterfaceServerProtocol):
    """One caller, with the rights it has."""

    def __init__(self, registry: VarlinkInterfaceRegistry, caller: socket.socket, *, root: bool) -> None:
        super().__init__(registry)
        self._root = root
        self._watched = caller.dup()  # asyncvarlink does not read, and so sees no end, while it serves a call

    def when_gone(self, act: Callable[[], object]) -> None:
        """Call ``act`` when the caller hangs up, unless it sends another call before."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            loop.remove_reader(self._watched)
            try:
                gone = not self._watched.recv(1, socket.MSG_PEEK)
            except OSError:
                gone = True
            if gone:
                act()

        loop.add_reader(self._watched, look)

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.get_running_loop().remove_reader(self._watched)
        self._watched.close()
        super().connection_lost(exc)

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> "asyncio.Future[None] | None":
        if not self._root and call.method_name not in READ_METHODS:
            raise _failed(PermissionRefused(f"{call.method_name} is for root.", hint="Run the command with sudo."))
        _caller.set(self)
        answer: asyncio.Future[None] | None = super().call_received(call, fds)
        return answer

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:
        if isinstance(exc, DmemError):
            raise _failed(exc)
        super().handle_call_exception(exc, oneway)


def _failed(error: DmemError) -> Failed:
    return Failed(code=error.code, message=error.message, hint=error.hint)


class ControlServer:
    """Accepts callers on a listening unix socket."""

    def __init__(self, listener: socket.socket, handler: Handler, group: str) -> None:
        self._listener = listener
        self._group = group
        self._registry = VarlinkInterfaceRegistry()
        self._registry.register_interface(
            VarlinkServiceInterface("virt-dmem", "virt-dmemd", __version__, "https://virt-dmem.dev", self._registry)
        )
        self._registry.register_interface(ControlInterface(handler))

    def start(self) -> None:
        """Answer from now on."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept nobody any more."""
        asyncio.get_running_loop().remove_reader(self._listener)

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        uid, gid = _credentials(caller)
        if uid != 0 and not self._in_group(uid, gid):
            log.warning("a process of user %d was refused: it is not in group %s", uid, self._group)
            caller.close()
            return
        caller.setblocking(False)
        connection = _Connection(self._registry, caller, root=uid == 0)
        VarlinkTransport(asyncio.get_running_loop(), caller, caller, connection)

    def _in_group(self, uid: int, gid: int) -> bool:
        try:
            group = grp.getgrnam(self._group)
            return gid == group.gr_gid or pwd.getpwuid(uid).pw_name in group.gr_mem
        except KeyError:
            return False


def _credentials(caller: socket.socket) -> tuple[int, int]:
    """Return user and group that the caller had when it connected."""
    _pid, uid, gid = _PEERCRED.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid, gid
