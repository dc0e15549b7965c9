# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own word: a second monitor of each domain that has one. The only module that imports qemu.qmp.

One connection for each domain, made anew whenever it breaks. Nothing waits for it but who asks it something.

A QEMU may be its guest's by now, and any process of its user may listen in its place. So it is asked who listens, a
line may be so long, and so many may come; what repeats itself is passed on once. Who says more is hung up on, and
listened to again after a pause that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.message import Message

from virt_dmem.aio import cancel_and_wait
from virt_dmem.domain_xml.monitor import socket_name, socket_of, sockets
from virt_dmem.hypervisor import unix_socket
from virt_dmem.rate_limit import RateLimitedLog

__all__ = ["EVENTS", "QemuMemoryBackend", "Monitors", "migration_capabilities"]

log = logging.getLogger(__name__)
say = RateLimitedLog(log)

EVENTS = (
    "MEMORY_DEVICE_SIZE_CHANGE",
    "MEM_UNPLUG_ERROR",
    "DEVICE_UNPLUG_GUEST_ERROR",
    "DEVICE_DELETED",
    "MEMORY_FAILURE",
    "SHUTDOWN",
    "RESUME",
)
"""Those that somebody is told of."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
FLOOD_RETRY_SECONDS = 600.0
"""The longest pause after which one is listened to again that said too much."""
ANSWER_SECONDS = 5.0
LINE_BYTES = 32 << 10
"""What comes unasked, in a line: ten times as much as the longest event."""
ANSWER_BYTES = 512 << 10
"""What was asked for: 256 slots for memory devices, with the nodes of each."""
BACKENDS = 512
"""So many memory backends are shown."""
BURST = 300
PER_SECOND = 5.0
"""So many lines may come at once, and in the long run, each KiB of a line for one. QEMU limits the rate of most
events; of those that it does not, a guest can cause one for each of its memory devices."""
APART_SECONDS = 0.5
"""What repeats itself in so short a time is passed on once."""
KINDS = 600
"""Events that wait to be passed on, of one kind and device each."""

OnEvent = Callable[[str, str, Mapping[str, Any]], Awaitable[None]]


class Refused(QMPError):
    """A monitor is not listened to any more; says why."""


@dataclass(frozen=True)
class QemuMemoryBackend:
    """A memory backend as QEMU has it; sizes in bytes."""

    id: str
    """``ram-node0``, ``pc.ram``; of a memory device ``mem`` and its alias."""
    kind: str
    """``memory-backend-file`` for what comes from a pool."""
    path: str
    """The file that QEMU was told to open, a link of ours that is gone by now; empty: it has none."""
    size_bytes: int
    policy: str
    host_nodes: tuple[int, ...]
    preallocated: bool
    shared: bool


class _Client(QMPClient):
    """A connection that takes no more than what a QEMU has to say.

    The library's own keeps each event for ever, renders each message for a log that nobody writes, and lets others
    have their turn only when nothing is left to read.
    """

    def __init__(self, uuid: str, hear: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(f"virt-dmem {uuid}", readbuflen=LINE_BYTES)
        self._hear = hear
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
                raise Refused(f"it sent a line of more than {len(line) >> 10} KiB")
        return line

    async def _do_recv(self) -> Message:
        line = await self._readline()
        try:
            message = Message(line)
            asked = message.get("id") in self._pending
        except (ValueError, RecursionError, TypeError) as error:
            raise Refused(f"it sent no message ({type(error).__name__})") from None
        if not asked:
            self._count(len(line))
        return message

    def _count(self, size: int) -> None:
        now = time.monotonic()
        self._left = min(BURST, self._left + PER_SECOND * (now - self._counted)) - 1 - (size >> 10)
        self._counted = now
        if self._left < 0:
            raise Refused(f"it said more than {BURST} things at once")

    async def _event_dispatch(self, msg: Message) -> None:
        data: Any = msg.get("data")
        self._hear(str(msg["event"]), data if isinstance(data, dict) else {})

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class _Heard:
    """Events that were not passed on yet: the last one of each kind and device."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._some = asyncio.Event()

    def put(self, event: str, data: Mapping[str, Any]) -> None:
        """Take note of an event, if it is one that somebody is told of."""
        key = event, str(data.get("device") or data.get("id") or "")
        if event in EVENTS and (key in self._events or len(self._events) < KINDS):
            self._events[key] = data
            self._some.set()

    async def get(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Wait for some, and return all there are."""
        await self._some.wait()
        return self.take()

    def take(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return all there are now."""
        self._some.clear()
        found = [(event, data) for (event, _), data in self._events.items()]
        self._events.clear()
        return found


class Monitors:
    """Connections to the monitors of domains that run.

    :param on_event: Awaited with UUID, name of the event and its data.
    :param qemu_of: Returns the PID of a domain's QEMU, which alone is listened to.
    """

    def __init__(self, on_event: OnEvent, qemu_of: Callable[[str], int | None]) -> None:
        self._on_event = on_event
        self._qemu_of = qemu_of
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # all that it logs, it raises to us as well
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clients: dict[str, QMPClient] = {}

    def follow(self, running: Set[str]) -> None:
        """Be connected to the monitors of these domains (UUIDs), as far as they have one, and to no others."""
        for uuid in self._tasks.keys() - running:
            self._tasks.pop(uuid).cancel()
        for uuid in [uuid for uuid, task in self._tasks.items() if task.done()]:
            lost = self._tasks.pop(uuid).exception()
            say(logging.ERROR, uuid, "the monitor of domain %s was lost: %s", uuid, _words(lost))
        there = sockets()
        for uuid in running - self._tasks.keys():
            if socket_name(uuid) in there:
                self._tasks[uuid] = asyncio.create_task(self._keep_connected(uuid, socket_of(uuid)))

    async def close(self) -> None:
        """Follow nobody any more."""
        await cancel_and_wait(self._tasks.values())

    def connected(self, uuid: str) -> bool:
        """Tell whether the domain's monitor answers now."""
        return uuid in self._clients

    async def backends(self, uuid: str) -> list[QemuMemoryBackend] | None:
        """Return what QEMU says of each memory backend; ``None`` where its monitor does not answer."""
        client = self._clients.get(uuid)
        if client is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found: Any = await client.execute("query-memdev")
                return [await _backend(client, item) for item in found[:BACKENDS] if "id" in item]
        except _NO_ANSWER as error:
            say(logging.WARNING, uuid, "the monitor of domain %s does not answer: %s", uuid, _words(error))
            return None

    async def _keep_connected(self, uuid: str, path: Path) -> None:
        retry = FIRST_RETRY_SECONDS
        while True:
            began, most = time.monotonic(), LAST_RETRY_SECONDS
            try:
                await self._follow_one(uuid, path)
            except Refused as error:
                say(logging.WARNING, uuid, "the monitor of domain %s is hung up on: %s", uuid, error)
                most = FLOOD_RETRY_SECONDS
            except Exception as error:  # noqa: BLE001 -- whatever becomes of what it says
                log.debug("monitor of domain %s: %s", uuid, _words(error))
            if time.monotonic() - began > 2 * retry:  # it was well for longer than it was left alone
                retry = FIRST_RETRY_SECONDS
            await asyncio.sleep(min(retry, most))
            retry = min(2 * retry, most)

    async def _follow_one(self, uuid: str, path: Path) -> None:
        """Be connected once, until the connection is gone.

        :raise Refused: When it is not that QEMU, or says what no QEMU says.
        """
        heard = _Heard()
        client = _Client(uuid, heard.put)
        telling = asyncio.create_task(self._tell(uuid, heard))
        try:
            async with asyncio.timeout(LAST_RETRY_SECONDS):
                await _connect(client, path, self._qemu_of(uuid))
            self._clients[uuid] = client
            await _until_gone(client)
            await self._pass_on(uuid, heard.take())  # its last words
        finally:
            self._clients.pop(uuid, None)
            telling.cancel()
            await _hang_up(client)

    async def _tell(self, uuid: str, heard: _Heard) -> None:
        while True:
            await self._pass_on(uuid, await heard.get())
            await asyncio.sleep(APART_SECONDS)

    async def _pass_on(self, uuid: str, events: list[tuple[str, Mapping[str, Any]]]) -> None:
        for event, data in events:
            try:
                await self._on_event(uuid, event, data)
            except Exception as error:  # noqa: BLE001 -- the next one is not lost with it
                say(logging.ERROR, uuid, "%s of domain %s is lost: %r", event, uuid, _words(error))


async def _connect(client: QMPClient, path: Path, pid: int | None) -> None:
    """Connect to a monitor, if that process made its socket.

    :raise Refused: When another one did.
    """
    connected = unix_socket.connect(path)
    try:
        made_by = unix_socket.peer_pid(connected)
        if not made_by or made_by != pid:
            raise Refused(f"process {made_by} listens there, and its QEMU is process {pid}")
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


async def _until_gone(client: QMPClient) -> None:
    while client.runstate.name == "RUNNING":
        await client.runstate_changed()


async def _hang_up(client: QMPClient) -> None:
    """End a connection.

    :raise Refused: When it was ended for that already.
    """
    try:
        await client.disconnect()
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 -- of whatever it died
        log.debug("monitor: %s", _words(error))


async def migration_capabilities(uuid: str, pid: int) -> set[str] | None:
    """Return what is set of the migration capabilities of a QEMU (PID) that is not followed yet.

    ``None``: no answer, or another process made its monitor's socket.
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
        say(logging.WARNING, uuid, "the monitor of domain %s does not answer: %s", uuid, _words(error))
        return None
    finally:
        with contextlib.suppress(Refused):
            await _hang_up(client)


_NO_ANSWER = (
    *(QMPError, TimeoutError, OSError, EOFError),
    *(LookupError, TypeError, ValueError, AttributeError),  # it is none that makes sense
)


def _words(error: BaseException | None) -> str:
    """Return what is said of an error, in which there may be anything that a QEMU sent: short and printable."""
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
