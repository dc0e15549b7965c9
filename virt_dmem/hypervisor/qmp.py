# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk to QEMU over a second monitor of each domain that has one. The only module that imports qemu.qmp.

One connection for each domain, reestablished whenever it breaks. Nothing waits for it but explicit queries.

A QEMU may be controlled by its guest, and any process of its user may listen in its place. So the peer is verified,
the length and the rate of lines are limited, and repeated events are passed on once. At a limit the connection is
closed, and reestablished after a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.message import Message

from virt_dmem.domain_xml.monitor import socket_name, socket_of, sockets
from virt_dmem.errors import DmemError, HypervisorError
from virt_dmem.host import unix_socket
from virt_dmem.hypervisor import ignore_shared
from virt_dmem.runtime.aio import cancel_and_wait, uninterrupted
from virt_dmem.runtime.rate_limit import RateLimitedLog

__all__ = ["EVENTS", "QemuMemoryBackend", "Monitors", "migration_capabilities", "monitor_of"]

log = logging.getLogger(__name__)
limited_log = RateLimitedLog(log)

EVENTS = (
    "MEMORY_DEVICE_SIZE_CHANGE",
    "MEM_UNPLUG_ERROR",
    "DEVICE_UNPLUG_GUEST_ERROR",
    "DEVICE_DELETED",
    "MEMORY_FAILURE",
    "SHUTDOWN",
    "RESUME",
)
"""The events that are passed on."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
FIRST_LOOK_SECONDS = 0.5
"""From the connection until its QEMU is asked for a capability that may have been left on."""
FLOOD_RETRY_SECONDS = 600.0
"""The longest pause before reconnecting to a QEMU that exceeded a limit."""
ANSWER_SECONDS = 5.0
LAST_SECONDS = 1.0
"""The longest that a connection may take to close once nobody waits for it."""
LINE_BYTES = 32 << 10
"""Limit of an event: ten times the longest one."""
ANSWER_BYTES = 512 << 10
"""Limit of a reply: 256 slots for memory devices, with the nodes of each."""
BACKENDS = 512
"""Limit of the memory backends that are returned."""
BURST = 300
PER_SECOND = 5.0
"""Limits of lines at once, and in the long run; each KiB counts as a line. QEMU limits the rate of most events; of
the others, a guest can cause one for each of its memory devices."""
APART_SECONDS = 0.5
"""Events repeated within this time are passed on once."""
KINDS = 600
"""Limit of the events that wait to be passed on, of one kind and device each."""

OnEvent = Callable[[str, str, Mapping[str, Any]], Awaitable[None]]


class Refused(QMPError):
    """Close the connection, for this reason."""


@dataclass(frozen=True)
class QemuMemoryBackend:
    """Describe a memory backend of a QEMU; sizes in bytes."""

    id: str
    """``ram-node0``, ``pc.ram``; of a memory device ``mem`` and its alias."""
    kind: str
    """``memory-backend-file`` for memory of a pool."""
    path: str
    """The file that QEMU was told to open, a link that we have removed since; empty: none."""
    size_bytes: int
    policy: str
    host_nodes: tuple[int, ...]
    preallocated: bool
    shared: bool


class _Client(QMPClient):
    """Limit what a connection accepts.

    The library's own client keeps every event, renders each message for a log that is not written, and yields to
    other tasks only when there is nothing left to read.
    """

    def __init__(self, uuid: str, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(f"virt-dmem {uuid}", readbuflen=LINE_BYTES)
        self._on_event = on_event
        self._left = float(BURST)
        self._counted = time.monotonic()

    async def _readline(self) -> bytes:
        await asyncio.sleep(0)
        reader, line = self._reader, b""
        if reader is None:
            raise EOFError
        while not line.endswith(b"\n"):
            try:
                line += await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                raise EOFError from error
            except asyncio.LimitOverrunError as error:
                line += await reader.readexactly(max(1, error.consumed))
            if len(line) > (ANSWER_BYTES if self._pending else LINE_BYTES):
                raise Refused(f"line of more than {len(line) >> 10} KiB")
        return line

    async def _do_recv(self) -> Message:
        line = await self._readline()
        try:
            message = Message(line)
            asked = message.get("id") in self._pending
        except (ValueError, RecursionError, TypeError) as error:
            raise Refused(f"not a QMP message ({type(error).__name__})") from None
        if not asked:
            self._count(len(line))
        return message

    def _count(self, size: int) -> None:
        now = time.monotonic()
        self._left = min(BURST, self._left + PER_SECOND * (now - self._counted)) - 1 - (size >> 10)
        self._counted = now
        if self._left < 0:
            raise Refused(f"more than {BURST} events at once")

    async def _event_dispatch(self, msg: Message) -> None:
        data: Any = msg.get("data")
        self._on_event(str(msg["event"]), data if isinstance(data, dict) else {})

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class _PendingEvents:
    """Hold events to be passed on: the last one of each kind and device."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._some = asyncio.Event()

    def put(self, event: str, data: Mapping[str, Any]) -> None:
        """Add an event, if it is one of those that are passed on."""
        key = event, str(data.get("device") or data.get("id") or "")
        if event in EVENTS and (key in self._events or len(self._events) < KINDS):
            self._events[key] = data
            self._some.set()

    async def get(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Wait for events, and take all."""
        await self._some.wait()
        return self.take()

    def take(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return and remove all events."""
        self._some.clear()
        found = [(event, data) for (event, _), data in self._events.items()]
        self._events.clear()
        return found


class Monitors:
    """Keep connections to the monitors of running domains.

    :param on_event: Awaited with UUID, name of the event and its data.
    :param qemu_of: Returns the PID of a domain's QEMU, the only accepted peer.
    :param is_parking: Returns whether a domain's QEMU may have been told to save it without its memory.
    """

    def __init__(
        self,
        on_event: OnEvent,
        qemu_of: Callable[[str], int | None],
        is_parking: Callable[[str], bool] = lambda _uuid: False,
    ) -> None:
        self._on_event = on_event
        self._qemu_of = qemu_of
        self._is_parking = is_parking
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # what it logs it also raises
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clients: dict[str, QMPClient] = {}

    def follow(self, running: Set[str]) -> None:
        """Connect to the monitors of these domains (UUIDs), as far as they have one, and disconnect all others."""
        for uuid in self._tasks.keys() - running:
            self._tasks.pop(uuid).cancel()
        for uuid in [uuid for uuid, task in self._tasks.items() if task.done()]:
            lost = self._tasks.pop(uuid).exception()
            limited_log(logging.ERROR, uuid, "monitor of domain %s: unexpected error: %s", uuid, _text(lost))
        there = sockets()
        for uuid in running - self._tasks.keys():
            if socket_name(uuid) in there:
                self._tasks[uuid] = asyncio.create_task(self._keep_connected(uuid, socket_of(uuid)))

    async def close(self) -> None:
        """Close all connections."""
        await cancel_and_wait(self._tasks.values())

    def connected(self, uuid: str) -> bool:
        """Return whether the domain's monitor is connected."""
        return uuid in self._clients

    async def backends(self, uuid: str) -> list[QemuMemoryBackend] | None:
        """Return QEMU's memory backends; ``None`` when its monitor does not answer."""
        client = self._clients.get(uuid)
        if client is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found: Any = await client.execute("query-memdev")
                return [await _backend(client, item) for item in found[:BACKENDS] if "id" in item]
        except _NO_ANSWER as error:
            limited_log(logging.WARNING, uuid, "monitor of domain %s does not answer: %s", uuid, _text(error))
            return None

    @contextlib.asynccontextmanager
    async def commands(self, uuid: str) -> AsyncIterator[ignore_shared.Command]:
        """Yield what executes commands on a domain's monitor, connected for that if it is not.

        :raise HypervisorError: When it cannot be connected.
        """
        if (client := self._clients.get(uuid)) is not None:
            yield _commands(client, uuid)
            return
        async with monitor_of(uuid, self._qemu_of(uuid)) as command:
            yield command

    async def _look_at_capability(self, uuid: str, client: QMPClient) -> None:
        """Have a QEMU save its guest with its memory again that was left without: the next save would have none."""
        command = _commands(client, uuid)
        pause = FIRST_LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                if await ignore_shared.is_on(command) and not self._is_parking(uuid):
                    await ignore_shared.switch(command, on=False)
                    log.warning("domain %s: %s was left on, and is off now", uuid, ignore_shared.CAPABILITY)
                return
            except (DmemError, *_NO_ANSWER) as error:
                log.debug("monitor of domain %s: %s", uuid, _text(error))
            pause = LAST_RETRY_SECONDS

    async def _keep_connected(self, uuid: str, path: Path) -> None:
        retry = FIRST_RETRY_SECONDS
        while True:
            began, most = time.monotonic(), LAST_RETRY_SECONDS
            try:
                await self._follow_one(uuid, path)
            except Refused as error:
                limited_log(logging.WARNING, uuid, "monitor of domain %s disconnected: %s", uuid, error)
                most = FLOOD_RETRY_SECONDS
            except Exception as error:  # noqa: BLE001 -- anything may follow from what it sends
                log.debug("monitor of domain %s: %s", uuid, _text(error))
            if time.monotonic() - began > 2 * retry:  # it was connected for longer than the pause
                retry = FIRST_RETRY_SECONDS
            await asyncio.sleep(min(retry, most))
            retry = min(2 * retry, most)

    async def _follow_one(self, uuid: str, path: Path) -> None:
        """Connect once, and pass on events until the connection is closed.

        :raise Refused: When the peer is not that QEMU, or exceeds a limit.
        """
        pending = _PendingEvents()
        client = _Client(uuid, pending.put)
        passing = asyncio.create_task(self._pass_on_pending(uuid, pending))
        looking: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(LAST_RETRY_SECONDS):
                await _connect(client, path, self._qemu_of(uuid))
            self._clients[uuid] = client
            looking = asyncio.create_task(self._look_at_capability(uuid, client))
            await _wait_closed(client)
            await self._pass_on(uuid, pending.take())  # sent before it closed
        finally:
            self._clients.pop(uuid, None)
            passing.cancel()
            if looking is not None:
                looking.cancel()
            await _disconnect(client)

    async def _pass_on_pending(self, uuid: str, pending: _PendingEvents) -> None:
        while True:
            await self._pass_on(uuid, await pending.get())
            await asyncio.sleep(APART_SECONDS)

    async def _pass_on(self, uuid: str, events: list[tuple[str, Mapping[str, Any]]]) -> None:
        for event, data in events:
            try:
                await self._on_event(uuid, event, data)
            except Exception as error:  # noqa: BLE001 -- it must not stop later events
                limited_log(
                    logging.ERROR, uuid, "event %s of domain %s could not be handled: %r", event, uuid, _text(error)
                )


async def _connect(client: QMPClient, path: Path, pid: int | None) -> None:
    """Connect to a monitor, if that process created its socket.

    :raise Refused: When another one did.
    """
    connected = unix_socket.connect(path)
    try:
        creator = unix_socket.peer_pid(connected)
        if not creator or creator != pid:
            raise Refused(f"its socket is of process {creator}, its QEMU is process {pid}")
    except BaseException:
        connected.close()
        raise
    try:
        await client.connect(connected)
    except QMPError as error:
        if isinstance(error.__cause__, Refused):
            raise error.__cause__ from None
        raise
    finally:
        if client.runstate.name != "RUNNING":
            connected.close()


async def _wait_closed(client: QMPClient) -> None:
    while client.runstate.name == "RUNNING":
        await client.runstate_changed()


async def _disconnect(client: QMPClient) -> None:
    """Close a connection, also when cancelled meanwhile: asyncio logs each error of a task that nobody has read.

    :raise Refused: When that was the reason for which it was closed.
    """
    if refused := await uninterrupted(_closed(client), LAST_SECONDS):
        raise refused


async def _closed(client: QMPClient) -> Refused | None:
    """Close a connection; return the limit that was the reason for which it was closed."""
    try:
        await client.disconnect()
    except Refused as refused:
        return refused
    except Exception as error:  # noqa: BLE001 -- whatever closed it
        log.debug("monitor: %s", _text(error))
    return None


async def migration_capabilities(uuid: str, pid: int) -> set[str] | None:
    """Return the enabled migration capabilities of a QEMU (PID) that is not connected yet.

    ``None``: no answer, or another process created its monitor's socket.
    """
    client = _Client(uuid, lambda _event, _data: None)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await _connect(client, socket_of(uuid), pid)
            found: Any = await client.execute("query-migrate-capabilities")
            return {str(item["capability"]) for item in found if item["state"]}
    except FileNotFoundError:
        return None
    except _NO_ANSWER as error:
        limited_log(logging.WARNING, uuid, "monitor of domain %s does not answer: %s", uuid, _text(error))
        return None
    finally:
        with contextlib.suppress(Refused):
            await _disconnect(client)


@contextlib.asynccontextmanager
async def monitor_of(uuid: str, pid: int | None) -> AsyncIterator[ignore_shared.Command]:
    """Yield what executes commands on the monitor of a QEMU (PID) that nobody is connected to.

    :raise HypervisorError: When it cannot be connected.
    """
    client = _Client(uuid, lambda _event, _data: None)
    try:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await _connect(client, socket_of(uuid), pid)
        except _NO_ANSWER as error:
            raise _silent(uuid, error) from error
        yield _commands(client, uuid)
    finally:
        with contextlib.suppress(Refused):
            await _disconnect(client)


def _commands(client: QMPClient, uuid: str) -> ignore_shared.Command:
    async def execute(name: str, arguments: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 -- what a QEMU sent
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await client.execute(name, dict(arguments) if arguments else None)
        except _NO_ANSWER as error:
            raise _silent(uuid, error) from error

    return execute


def _silent(uuid: str, error: BaseException) -> HypervisorError:
    return HypervisorError(
        f"QEMU's second monitor of domain {uuid} does not do what it is asked to: {_text(error)}.",
        hint="Look into libvirt's log of the domain, and try again.",
    )


_NO_ANSWER = (
    *(QMPError, TimeoutError, OSError, EOFError),
    *(LookupError, TypeError, ValueError, AttributeError),  # a reply without the expected content
)


def _text(error: BaseException | None) -> str:
    """Return the text of an error, which may contain anything that a QEMU sent, short and printable."""
    text = str(error)[:300] or type(error).__name__
    return "".join(char if char.isprintable() else "?" for char in text)


async def _backend(client: QMPClient, item: Mapping[str, Any]) -> QemuMemoryBackend:
    path = f"/objects/{item['id']}"
    kind = str(await client.execute("qom-get", {"path": path, "property": "type"}))
    file = ""
    if kind == "memory-backend-file":
        file = str(await client.execute("qom-get", {"path": path, "property": "mem-path"}))
    return QemuMemoryBackend(
        id=str(item["id"])[:4096],
        kind=kind[:4096],
        path=file[:4096],
        size_bytes=int(item["size"]) & (2**63 - 1),
        policy=str(item["policy"])[:4096],
        host_nodes=tuple(int(node) & 0xFFFF for node in item.get("host-nodes", ())[:1024]),
        preallocated=bool(item["prealloc"]),
        shared=bool(item["share"]),
    )
