# SPDX-License-Identifier: GPL-2.0-or-later
"""The second monitor, with a peer that sends what no QEMU would. The connection is real."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from virt_dmem.domain_xml import monitor
from virt_dmem.hypervisor import qmp
from virt_dmem.hypervisor.qmp import Monitors

UUID = "6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f0001"
GREETING = b'{"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}\r\n'
Writer = asyncio.StreamWriter


def event(name: str, **data: object) -> bytes:
    return (
        json.dumps({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}).encode() + b"\n"
    )


class Rig:
    """A fake monitor, and the events of it that were passed on."""

    def __init__(self, speak: Callable[[asyncio.StreamReader, Writer], Awaitable[None]], pid: int) -> None:
        self.heard: list[tuple[str, Mapping[str, Any]]] = []
        self.connections = 0
        self._speak = speak
        self.monitors = Monitors(self._on_event, lambda _uuid: pid)

    async def _on_event(self, uuid: str, name: str, data: Mapping[str, Any]) -> None:
        assert uuid == UUID
        self.heard.append((name, data))

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        with suppress(OSError):
            await self._speak(reader, writer)
        writer.close()


@asynccontextmanager
async def listening(
    speak: Callable[[asyncio.StreamReader, Writer], Awaitable[None]], pid: int | None = None
) -> AsyncIterator[Rig]:
    rig = Rig(speak, os.getpid() if pid is None else pid)
    server = await asyncio.start_unix_server(rig.serve, monitor.socket_of(UUID))
    rig.monitors.follow({UUID})
    try:
        yield rig
    finally:
        async with asyncio.timeout(60):
            await rig.monitors.close()
        server.close()


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(qmp, "limited_log", qmp.RateLimitedLog(qmp.log))
    monkeypatch.setattr(qmp, "APART_SECONDS", 0.05)
    monkeypatch.setattr(qmp, "FIRST_RETRY_SECONDS", 0.05)
    with TemporaryDirectory() as directory:  # a short one: the path of a socket is at most 107 bytes long
        monkeypatch.chdir(directory)
        monkeypatch.setattr(monitor, "_DIRECTORY", directory)
        yield


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def greet(reader: asyncio.StreamReader, writer: Writer) -> None:
    writer.write(GREETING)
    await reader.read(4096)
    writer.write(b'{"return": {}}\r\n')
    await writer.drain()


async def say_nothing(reader: asyncio.StreamReader, _writer: Writer) -> None:
    await reader.read()


def test_giving_up_a_silent_monitor_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that shuts down cancels the connection: no error is logged."""

    async def story() -> None:
        async with listening(say_nothing) as rig:
            await until(lambda: rig.connections)
            await asyncio.sleep(0.05)
        assert not rig.monitors.connected(UUID)

    asyncio.run(story())
    assert not caplog.records


def test_a_flood_is_cut_off_passed_on_in_parts_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    sent = 0

    async def speak(reader: asyncio.StreamReader, writer: Writer) -> None:
        nonlocal sent
        await greet(reader, writer)
        while not writer.is_closing():
            writer.write(event("RESUME") * 10 + event("MEMORY_FAILURE", recipient="guest"))
            sent += 11
            await writer.drain()

    async def story() -> None:
        async with listening(speak) as rig:
            await until(lambda: rig.connections >= 3)
        assert rig.connections <= 4
        assert 2 <= len(rig.heard) <= 6 * rig.connections
        assert {name for name, _ in rig.heard} == {"RESUME", "MEMORY_FAILURE"}

    asyncio.run(story())
    said = [record.getMessage() for record in caplog.records]
    assert said
    assert len(said) <= 4
    assert f"monitor of domain {UUID} disconnected: more than 300 events at once" in said[0]


@pytest.mark.parametrize("passes", range(1, 12))
def test_whenever_it_is_given_up_while_it_closes_no_error_is_left_unread(
    passes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio logs the errors that nobody read; which it keeps differs between Python 3.11 and 3.13."""
    unread: list[str] = []

    async def speak(reader: asyncio.StreamReader, writer: Writer) -> None:
        await greet(reader, writer)
        writer.write(event("RESUME") * 400)
        await writer.drain()
        await reader.read()

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, said: unread.append(str(said["message"])))
        async with listening(speak) as rig:
            client = qmp._Client(UUID, lambda _name, _data: None)
            await qmp._connect(client, monitor.socket_of(UUID), os.getpid())
            await qmp._wait_closed(client)
            closing = asyncio.create_task(qmp._disconnect(client))
            for _ in range(passes):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled() or isinstance(closing.exception(), qmp.Refused)
            assert rig.connections
        del client, closing
        gc.collect()

    asyncio.run(story())
    gc.collect()
    assert not unread
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_other_tasks_run_while_one_monitor_floods() -> None:
    """Passes of the event loop are counted: one message each."""

    async def story() -> None:
        reader = asyncio.StreamReader(limit=qmp.LINE_BYTES)
        reader.feed_data(event("RESUME") * 100)
        reader.feed_eof()
        taken: list[str] = []
        client = qmp._Client(UUID, lambda name, _data: taken.append(name))
        client._reader = reader
        passes = 0

        async def others() -> None:
            nonlocal passes
            while len(taken) < 100:
                await asyncio.sleep(0)
                passes += 1

        other = asyncio.create_task(others())
        for _ in range(100):
            await client._on_message(await client._do_recv())
        await other
        assert passes >= 100
        assert not client.events.history, "the library keeps none of it"

    asyncio.run(story())


@pytest.mark.parametrize(
    "words",
    [
        b"[" * 20_000 + b"\n",
        b'{"event":' * 3000 + b"\n",
        b'{"a": ' + b"9" * 6000 + b"}\n",
        b"\xff\xfe\n",
        b'"word"\n',
        b"x" * (qmp.LINE_BYTES + 2),
        b'{"id": [], "return": 1}\n',
    ],
    ids=["deep list", "deep object", "long number", "no UTF-8", "no object", "no end", "unhashable"],
)
@pytest.mark.parametrize("greeted", [False, True])
def test_what_is_no_message_ends_the_connection_only(
    words: bytes, greeted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def speak(reader: asyncio.StreamReader, writer: Writer) -> None:
        if greeted:
            await greet(reader, writer)
        if rig_of[0].connections == 1:
            writer.write(words)
        elif not greeted:
            await greet(reader, writer)
        if rig_of[0].connections > 1:
            writer.write(event("RESUME"))
        await writer.drain()
        await reader.read()

    rig_of: list[Rig] = []

    async def story() -> None:
        async with listening(speak) as rig:
            rig_of.append(rig)
            await until(lambda: rig.heard)
            assert rig.connections == 2
            rig.monitors.follow({UUID})

    asyncio.run(story())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not any(char in record.getMessage() for record in caplog.records for char in "\n\x1b")


def test_answers_that_make_no_sense_are_none(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [
        {"return": 5},
        {"return": [5]},
        {"return": [{"id": {}, "size": [], "policy": 1}]},
        {"error": {"class": "x", "desc": "\x1b[31m\n" + "y" * 10_000}},
        {"error": 7},
        {},
    ]

    async def speak(reader: asyncio.StreamReader, writer: Writer) -> None:
        await greet(reader, writer)
        while asked := await reader.read(4096):
            number = json.loads(asked).get("id")
            writer.write(json.dumps(answers[0] | {"id": number}).encode() + b"\n")

    async def story() -> None:
        async with listening(speak) as rig:
            while answers:
                await until(lambda: rig.monitors.connected(UUID))
                assert await rig.monitors.backends(UUID) is None
                answers.pop(0)

    asyncio.run(story())
    assert caplog.records
    assert all(record.getMessage().isprintable() and len(record.getMessage()) < 500 for record in caplog.records)


def test_a_long_answer_that_was_asked_for_is_read() -> None:
    """256 memory devices on a host of many nodes."""
    shown = [
        {
            "id": f"mem{number}",
            "size": 1,
            "policy": "bind",
            "prealloc": False,
            "share": True,
            "host-nodes": [*range(64)],
        }
        for number in range(256)
    ]

    async def speak(reader: asyncio.StreamReader, writer: Writer) -> None:
        await greet(reader, writer)
        text = ""
        while got := await reader.read(4096):
            text = (text + got.decode()).lstrip()
            while text:
                try:
                    call, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                found: Any = shown if call["execute"] == "query-memdev" else "memory-backend-ram"
                writer.write(json.dumps({"return": found, "id": call["id"]}).encode() + b"\n")

    async def story() -> None:
        async with listening(speak) as rig:
            await until(lambda: rig.monitors.connected(UUID))
            found = await rig.monitors.backends(UUID)
            assert found is not None
            assert len(found) == 256

    asyncio.run(story())


def test_a_process_that_is_not_its_qemu_is_not_listened_to(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with listening(greet, pid=1) as rig:
            await until(lambda: caplog.records)
            assert not rig.monitors.connected(UUID)
            assert not rig.heard
            assert await qmp.migration_capabilities(UUID, 1) is None

    asyncio.run(story())
    assert f"its socket is of process {os.getpid()}, its QEMU is process 1" in caplog.records[0].getMessage()
