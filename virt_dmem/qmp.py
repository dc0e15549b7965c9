# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own word: a second monitor of each domain that has one. The only module that imports qemu.qmp.

One connection for each domain, made anew whenever it breaks. Nothing waits for it but who asks it something.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from virt_dmem.monitor_xml import socket_name, socket_of, sockets
from virt_dmem.tasks import cancelled

__all__ = ["EVENTS", "Backend", "Monitors", "migration_capabilities"]

log = logging.getLogger(__name__)

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
ANSWER_SECONDS = 5.0

OnEvent = Callable[[str, str, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Backend:
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


class Monitors:
    """Connections to the monitors of domains that run.

    :param on_event: Awaited with UUID, name of the event and its data.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # all that it logs, it raises to us as well
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clients: dict[str, QMPClient] = {}

    def follow(self, running: Set[str]) -> None:
        """Be connected to the monitors of these domains (UUIDs), as far as they have one, and to no others."""
        for uuid in self._tasks.keys() - running:
            self._tasks.pop(uuid).cancel()
        for uuid in [uuid for uuid, task in self._tasks.items() if task.done()]:
            log.error("the monitor of domain %s was lost: %r", uuid, self._tasks.pop(uuid).exception())
        there = sockets()
        for uuid in running - self._tasks.keys():
            if socket_name(uuid) in there and socket_of(uuid).is_socket():
                self._tasks[uuid] = asyncio.create_task(self._keep_connected(uuid, socket_of(uuid)))

    async def close(self) -> None:
        """Follow nobody any more."""
        await cancelled(self._tasks.values())

    def connected(self, uuid: str) -> bool:
        """Tell whether the domain's monitor answers now."""
        return uuid in self._clients

    async def backends(self, uuid: str) -> list[Backend] | None:
        """Return what QEMU says of each memory backend; ``None`` where its monitor does not answer."""
        client = self._clients.get(uuid)
        if client is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found: Any = await client.execute("query-memdev")
                return [await _backend(client, item) for item in found if "id" in item]
        except (QMPError, TimeoutError, OSError, EOFError, LookupError) as error:
            log.warning("the monitor of domain %s does not answer: %s", uuid, error or type(error).__name__)
            return None

    async def _keep_connected(self, uuid: str, path: Path) -> None:
        retry = FIRST_RETRY_SECONDS
        while True:
            client = QMPClient(f"virt-dmem {uuid}")
            listener = EventListener(EVENTS)
            client.register_listener(listener)
            try:
                async with asyncio.timeout(LAST_RETRY_SECONDS):
                    await client.connect(str(path))
                retry = FIRST_RETRY_SECONDS
                self._clients[uuid] = client
                await self._listen(uuid, client, listener)
            except (QMPError, TimeoutError, OSError, EOFError) as error:
                log.debug("monitor of domain %s: %s", uuid, error)
            finally:
                self._clients.pop(uuid, None)
                with contextlib.suppress(QMPError, OSError, EOFError):
                    await client.disconnect()
            await asyncio.sleep(retry)
            retry = min(2 * retry, LAST_RETRY_SECONDS)

    async def _listen(self, uuid: str, client: QMPClient, listener: EventListener) -> None:
        """Pass on events until the connection is gone."""

        async def events() -> None:
            async for event in listener:
                data: Any = event.get("data")
                await self._on_event(uuid, str(event["event"]), data if isinstance(data, dict) else {})

        async def until_gone() -> None:
            while client.runstate.name == "RUNNING":
                await client.runstate_changed()

        tasks = [asyncio.create_task(events()), asyncio.create_task(until_gone())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()


async def migration_capabilities(uuid: str) -> set[str] | None:
    """Return what is set of a QEMU's migration capabilities, if it is not followed yet; ``None``: no answer."""
    path = socket_of(uuid)
    if not path.is_socket():
        return None
    client = QMPClient(f"virt-dmem {uuid}")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await client.connect(str(path))
            found: Any = await client.execute("query-migrate-capabilities")
            return {str(item["capability"]) for item in found if item["state"]}
    except (QMPError, TimeoutError, OSError, EOFError, LookupError) as error:
        log.warning("the monitor of domain %s does not answer: %s", uuid, error or type(error).__name__)
        return None
    finally:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()


async def _backend(client: QMPClient, item: Mapping[str, Any]) -> Backend:
    path = f"/objects/{item['id']}"
    kind = str(await client.execute("qom-get", {"path": path, "property": "type"}))
    file = ""
    if kind == "memory-backend-file":
        file = str(await client.execute("qom-get", {"path": path, "property": "mem-path"}))
    return Backend(
        id=str(item["id"]),
        kind=kind,
        path=file,
        size_bytes=int(item["size"]),
        policy=str(item["policy"]),
        host_nodes=tuple(int(node) for node in item.get("host-nodes", ())),
        preallocated=bool(item["prealloc"]),
        shared=bool(item["share"]),
    )
