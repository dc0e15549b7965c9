# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers of the read-only socket share the event loop fairly, and never delay root. Calls served are counted.

The server and its sockets are real; the users at their other ends and the answers are fakes.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from virt_dmem.errors import DomainRefused
from virt_dmem.ipc import readers, server
from virt_dmem.ipc.connection import CALLS_WAITING
from virt_dmem.ipc.interface import Interface, method
from virt_dmem.ipc.version import INTERFACE

LONG = 1 << 20


class Handler(Interface):
    """A fake of the daemon's methods, which notes the calls in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.qemu_answers = asyncio.Event()

    @method(returns="domains")
    async def ListDomains(self) -> list[str]:  # noqa: N802
        self.asked.append("list")
        return cast("list[str]", msgspec.Raw(b'["%b"]' % (b"x" * LONG)))

    @method(returns="domain")
    def ShowDomain(self, *, domain: str) -> str:  # noqa: N802
        self.asked.append(domain)
        if domain == "nowhere":
            raise DomainRefused(f"Domain {domain} holds no memory.", hint="Start it.")
        return domain

    @method(returns="backends")
    async def ShowBackends(self, *, domain: str) -> list[str]:  # noqa: N802
        self.asked.append(f"backends of {domain}")
        await self.qemu_answers.wait()
        return []

    @method(returns="pools")
    def ListPools(self) -> list[str]:  # noqa: N802
        self.asked.append("pools")
        return []

    @method(returns="text")
    def ShowMetrics(self) -> str:  # noqa: N802
        self.asked.append("metrics")
        return ""

    @method()
    async def RefreshPools(self) -> None:  # noqa: N802
        self.asked.append("root")


class Rig:
    """The server and its callers."""

    def __init__(self, handler: Handler, users: dict[int, int]) -> None:
        self.handler = handler
        self._users = users
        self._number = 0

    async def connect(self, uid: int) -> socket.socket:
        """Return a connection of that user: root's socket takes root only."""
        self._number += 1
        caller = socket.socket(socket.AF_UNIX)
        caller.bind(f"\0test-readers-{id(self)}-{self._number}")
        self._users[self._number] = uid
        caller.connect("sock" if uid == 0 else "sock-ro")
        caller.setblocking(False)
        return caller

    async def ask(self, caller: socket.socket, method: str, times: int = 1, **parameters: object) -> None:
        """Send a call so many times."""
        call = json.dumps({"method": f"{INTERFACE}.{method}", "parameters": parameters}).encode() + b"\0"
        await asyncio.get_running_loop().sock_sendall(caller, call * times)

    async def answers(self, caller: socket.socket, count: int = 1) -> list[Any]:
        """Return so many answers, or fewer if the connection is closed."""
        heard = b""
        async with asyncio.timeout(60):
            while heard.count(b"\0") < count:
                try:
                    got = await asyncio.get_running_loop().sock_recv(caller, 1 << 20)
                except ConnectionResetError:
                    break
                if not got:
                    break
                heard += got
        return [json.loads(answer) for answer in heard.split(b"\0")[:-1]]

    async def is_disconnected(self, caller: socket.socket) -> bool:
        while True:
            try:
                async with asyncio.timeout(60):
                    if not await asyncio.get_running_loop().sock_recv(caller, 1 << 20):
                        return True
            except ConnectionResetError:
                return True


@asynccontextmanager
async def serving(users: dict[int, int]) -> AsyncIterator[Rig]:
    handler = Handler()
    listeners = []
    for name in ("sock", "sock-ro"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen(200)
        listeners.append(listener)
    control = server.ControlServer(listeners[0], listeners[1], handler, "nobody")
    control.start()
    try:
        yield Rig(handler, users)
    finally:
        handler.qemu_answers.set()
        await control.stop()
        for listener in listeners:
            listener.close()


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rig], Awaitable[None]]], None]:
    """Play a story with a server."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 107 bytes long
    users: dict[int, int] = {}

    def credentials(connected: socket.socket) -> tuple[int, int]:
        uid = users[int(connected.getpeername().rpartition(b"-")[2])]
        return uid, uid

    monkeypatch.setattr(server, "credentials_of", credentials)
    monkeypatch.setattr(server.ControlServer, "_in_group", lambda _self, uid, _gid: uid < 5000)

    def play(story: Callable[[Rig], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with serving(users) as rig:
                await story(rig)

        asyncio.run(whole())

    return play


def test_root_is_served_before_a_crowd_that_was_there_first(play: Callable[..., None]) -> None:
    async def story(rig: Rig) -> None:
        crowd = [await rig.connect(1000 + number % 3) for number in range(readers.CONNECTIONS)]
        for one in crowd:
            await rig.ask(one, "ShowDomain", CALLS_WAITING, domain="crowd")
        root = await rig.connect(0)
        await rig.ask(root, "RefreshPools")
        assert await rig.answers(root) == [{}]
        before = rig.handler.asked[: rig.handler.asked.index("root")]
        assert len(before) < 10, "of more than 2000 that were asked for"

    play(story)


def test_a_user_with_many_connections_is_served_no_more_often_than_one_with_a_single_one(
    play: Callable[..., None],
) -> None:
    async def story(rig: Rig) -> None:
        for _ in range(readers.CONNECTIONS - 1):
            await rig.ask(await rig.connect(1000), "ShowDomain", CALLS_WAITING, domain="many")
        while "many" not in rig.handler.asked:
            await asyncio.sleep(0)
        single = await rig.connect(1001)
        await rig.ask(single, "ShowDomain", 10, domain="single")
        assert len(await rig.answers(single, 10)) == 10
        first = rig.handler.asked.index("single")
        last = len(rig.handler.asked) - rig.handler.asked[::-1].index("single")
        assert rig.handler.asked[first:last].count("many") < 20

    play(story)


def test_a_caller_that_does_not_read_a_long_answer_is_disconnected_and_the_others_are_served(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SEND_SECONDS", 1)

    async def story(rig: Rig) -> None:
        bad = [await rig.connect(1000) for _ in range(3)]
        for one in bad:
            await rig.ask(one, "ListDomains")
        good = await rig.connect(1001)
        await rig.ask(good, "ListDomains")
        (answer,) = await rig.answers(good)
        assert len(answer["parameters"]["domains"][0]) == LONG
        assert rig.handler.asked.count("list") <= 3, "one long answer at a time"
        assert await rig.is_disconnected(bad[0])

    play(story)


def test_a_caller_that_does_not_read_short_answers_keeps_nobody_waiting(play: Callable[..., None]) -> None:
    async def story(rig: Rig) -> None:
        bad = await rig.connect(1000)
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await rig.ask(bad, "ShowDomain", 20, domain="b" * 3000)
            await asyncio.sleep(0.01)
        good = await rig.connect(1000)
        await rig.ask(good, "ShowDomain", domain="good")
        assert await rig.answers(good)

    play(story)


def test_a_qemu_that_does_not_answer_delays_no_other_caller(play: Callable[..., None]) -> None:
    async def story(rig: Rig) -> None:
        for _ in range(3):
            await rig.ask(await rig.connect(1000), "ShowBackends", domain="stuck")
        other = await rig.connect(1001)
        await rig.ask(other, "ShowDomain", domain="other")
        assert await rig.answers(other)
        assert rig.handler.asked.count("backends of stuck") <= 1, "one QEMU is asked at a time"

    play(story)


def test_one_user_cannot_take_all_connections(play: Callable[..., None]) -> None:
    async def story(rig: Rig) -> None:
        crowd = [await rig.connect(1000) for _ in range(readers.CONNECTIONS)]
        await rig.ask(crowd[-1], "ListPools")
        assert await rig.answers(crowd[-1])
        one_more = await rig.connect(1000)
        assert await rig.is_disconnected(one_more), "it has them all"
        other = await rig.connect(1001)
        await rig.ask(other, "ListPools")
        assert await rig.answers(other)
        assert await rig.is_disconnected(crowd[0]), "that was idle for longest"
        await rig.ask(crowd[-1], "ListPools")
        assert await rig.answers(crowd[-1])

    play(story)


def test_what_all_ask_for_is_not_made_for_each(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CACHE_TIMES", 1_000_000)

    async def story(rig: Rig) -> None:
        for _ in range(10):
            caller = await rig.connect(1000)
            await rig.ask(caller, "ShowMetrics", 5)
            assert len(await rig.answers(caller, 5)) == 5
        assert rig.handler.asked == ["metrics"]

    play(story)


def test_members_may_read_and_nothing_else_and_strangers_nothing(play: Callable[..., None]) -> None:
    async def story(rig: Rig) -> None:
        member = await rig.connect(1000)
        for name in ("RefreshPools", "Reconcile", "Hook", "Attach"):
            await rig.ask(member, name)
            (answer,) = await rig.answers(member)
            assert answer["parameters"]["code"] == "permission"
        await rig.ask(member, "ShowDomain", domain="nowhere")
        (answer,) = await rig.answers(member)
        assert answer["parameters"]["code"] == DomainRefused.code
        stranger = await rig.connect(6000)
        assert await rig.is_disconnected(stranger)
        assert rig.handler.asked == ["nowhere"]

    play(story)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 60_000 + b"\0",
        b'{"method":' * 6000 + b"\0",
        b"9" * 10_000 + b"\0",
        b"\xff\0",
        b'"word"\0',
        b"\0",
        b"x" * 100_000,
        b'{"method": "dev.virt-dmem.ListPools"}\0' * (CALLS_WAITING + 1),
    ],
    ids=["deep list", "deep object", "long number", "no UTF-8", "no object", "nothing", "too long", "too many"],
)
def test_a_connection_that_sends_no_call_is_closed(play: Callable[..., None], data: bytes) -> None:
    async def story(rig: Rig) -> None:
        bad = await rig.connect(1000)
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(bad, data)
        assert await rig.is_disconnected(bad)
        good = await rig.connect(1000)
        await rig.ask(good, "ListPools", CALLS_WAITING)
        good.shutdown(socket.SHUT_WR)
        assert len(await rig.answers(good, CALLS_WAITING + 1)) == CALLS_WAITING, "and then it is closed"

    play(story)
