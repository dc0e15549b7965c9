# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that others can delay: the event loop continues, and waiting has a limit."""

from __future__ import annotations

import asyncio
import contextvars
import os
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.rig.hostile_user import USER, a_leaseholder, a_process_that_cannot_be_read, a_writer_that_never_ends
from virt_dmem.errors import Delayed, NotMapped
from virt_dmem.hypervisor import processes as qemu_processes
from virt_dmem.pools import extent_files
from virt_dmem.runtime.deadline import within
from virt_dmem.runtime.stuck_threads import each

T = TypeVar("T")
UUID = str(uuid.uuid4())
"""A UUID of no other process: all of this host are searched."""
GAP_SECONDS = 20.0
"""The kernel breaks a lease after 45 s (``/proc/sys/fs/lease-break-time``)."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of several users")


def turning(call: Callable[[], T]) -> T:
    """Call in a loop that ticks, which must see no gap."""

    async def run() -> T:
        last = longest = 0.0
        last = time.monotonic()

        async def tick() -> None:
            nonlocal last, longest
            while True:
                await asyncio.sleep(0.01)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        ticking = asyncio.create_task(tick())
        try:
            return await within(call, "what is tried")
        finally:
            await asyncio.sleep(0.05)
            ticking.cancel()
            assert longest < GAP_SECONDS

    return asyncio.run(run())


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Blocks a call until it is released."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_returns_raises_and_knows_its_context() -> None:
    async def run() -> None:
        number = contextvars.ContextVar("number", default=0)
        number.set(7)
        assert await within(number.get, "a number") == 7
        with pytest.raises(ZeroDivisionError):
            await within(lambda: 1 // 0, "a number")
        with pytest.raises(StopAsyncIteration):
            await within(iter_ended, "a number")

    def iter_ended() -> None:
        raise StopAsyncIteration

    asyncio.run(run())


def test_what_takes_too_long_is_given_up_and_not_asked_again_until_it_came_back(held: threading.Event) -> None:
    async def run() -> None:
        began = time.monotonic()
        with pytest.raises(Delayed, match="about a file"):
            await within(held.wait, "a file", seconds=0.2)
        threads = threading.active_count()
        for _ in range(5):
            with pytest.raises(Delayed, match="yet"):
                await within(held.wait, "a file")
        assert threading.active_count() == threads
        assert await within(lambda: 1, "another file") == 1
        held.set()
        while True:
            try:
                assert await within(lambda: 2, "a file") == 2
            except Delayed:
                assert time.monotonic() < began + 60
            else:
                break

    asyncio.run(run())


def test_a_cancelled_caller_waits_for_the_end_of_a_change(held: threading.Event) -> None:
    done = []

    def change() -> None:
        held.wait()
        done.append(1)

    async def run() -> None:
        task = asyncio.create_task(within(change, "a change", seconds=60))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        held.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done

    asyncio.run(run())


def test_of_many_those_that_take_too_long_are_left_out(held: threading.Event) -> None:
    def answer(item: int) -> int:
        if item % 10 == 3:
            held.wait()
        return item * item

    wanted = {item: item * item for item in range(40) if item % 10 != 3}
    assert dict(each(answer, range(40), seconds=0.2)) == wanted
    began = time.monotonic()
    assert dict(each(answer, range(40), seconds=30)) == wanted, "they are not waited for twice"
    assert time.monotonic() < began + 30
    with pytest.raises(ZeroDivisionError):
        dict(each(lambda item: 1 // item, range(1)))


@pytest.fixture
def owned() -> Iterator[Path]:
    """A file of another user's, and where that user can reach it."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    path = top / "pc.ram"
    path.write_bytes(bytes(4096))
    os.chown(path, USER, USER)
    yield path
    shutil.rmtree(top)


def test_a_fork_does_not_wait_for_threads_of_its_parent() -> None:
    async def call() -> int:
        return await within(lambda: 7, "a call")

    assert asyncio.run(call()) == 7
    if not (child := os.fork()):
        os._exit(asyncio.run(call()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@needs_root
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_lease_delays_nobody_and_is_a_use(owned: Path, kind: str) -> None:
    began = time.monotonic()
    with a_leaseholder(owned, kind):
        extent_files.grant_access(owned, USER, USER)
        extent_files.revoke_access(owned)
        assert owned.stat().st_uid == 0
        assert extent_files.in_use(owned), "a lease survives a change of the file's owner"
        with pytest.raises(BlockingIOError):
            extent_files.truncate(owned, 0)
        assert extent_files.in_use(owned)
        with pytest.raises(NotMapped):
            extent_files.check_mapped(os.getpid(), [("pc.ram", owned, 4096)])
    assert time.monotonic() < began + 40
    assert not extent_files.in_use(owned)
    extent_files.truncate(owned, 0)


@needs_root
def test_what_is_no_file_delays_nobody_and_is_refused(owned: Path) -> None:
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to(owned))):
        path = owned.with_name(str(number))
        make(path)
        for act in (extent_files.in_use, lambda path: extent_files.truncate(path, 0)):
            with pytest.raises(OSError):
                act(path)
        with pytest.raises(extent_files.ExtentError):
            extent_files.grant_access(path, USER, USER)
        assert path.lstat().st_uid == 0


@needs_root
def test_a_process_that_cannot_be_read_is_left_out_and_the_event_loop_continues(
    owned: Path, tmp_path: Path
) -> None:
    place = owned.with_name("mount")
    place.mkdir()
    command = ["sh", "-c", "echo ready; read -r line", "sh", "-uuid", UUID]
    with a_process_that_cannot_be_read(place, "-uuid", UUID) as hostile:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert turning(lambda: qemu_processes.find_qemu(tmp_path, "guest", UUID)) == process.pid
        assert turning(lambda: qemu_processes.find_qemu(tmp_path, "guest", UUID)) is None
        (tmp_path / "guest.pid").write_text(str(hostile))
        with pytest.raises(Delayed):
            turning(lambda: qemu_processes.find_qemu(tmp_path, "guest", UUID))


@needs_root
def test_an_extent_that_is_roots_already_is_not_waited_for_whoever_writes_to_it(owned: Path) -> None:
    owned.chmod(0o600)
    place = owned.with_name("mount")
    place.mkdir()
    with a_writer_that_never_ends(place, owned, owner=0):

        def look() -> bool:
            extent_files.revoke_access(owned)
            return extent_files.in_use(owned)

        assert turning(look)
        with pytest.raises(Delayed):
            turning(lambda: extent_files.grant_access(owned, USER, USER))


def test_a_domain_with_much_that_is_overdue_keeps_no_other_waiting(held: threading.Event) -> None:
    async def run() -> None:
        for number in range(300):
            with pytest.raises(Delayed):
                await within(held.wait, f"extent {number}", of="hostile", seconds=0.01)
        assert await within(lambda: 7, "another extent", of="another") == 7
        assert await within(lambda: 7, "something") == 7

    asyncio.run(run())
