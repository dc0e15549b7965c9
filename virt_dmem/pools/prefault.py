# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive ``virt-dmem-prefault``, the C helper that touches, zeroes or reads all memory of an extent.

A program of its own, because that takes seconds to minutes in threads, can die of SIGBUS or of the OOM killer, and
has to be stopped at once. What the modes do, and the events: ``virt-dmem-prefault --help``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from virt_dmem.errors import PrefaultFailed
from virt_dmem.native.programs import HELPER

__all__ = ["prefault", "Mode", "Progress"]

Mode = Literal["populate", "zero", "scrub", "verify-zero"]

_GRACE_SECONDS = 5.0
"""How long the helper may take to end after SIGTERM; it looks about every 50 ms (one page of 1 GiB: longer)."""

_DID = {
    "populate": "The memory of {} was not brought in",
    "zero": "{} was not zeroed",
    "scrub": "{} was not scrubbed",
    "verify-zero": "{} was not found clean",
}

_HINTS = {
    "ENOMEM": "Look at the free memory of the pool with 'virt-dmem pool show', and at cgroup limits.",
    "EHWPOISON": "Take this memory out of use and look in the kernel log for the machine check.",
    "EIO": "Look where the pages of the file lie, and in the kernel log.",
    "EUCLEAN": "Do not give it to another domain before it is scrubbed.",
}


@dataclass(frozen=True)
class Progress:
    """How far the helper is; the last one has ``done_bytes == total_bytes``."""

    done_bytes: int
    total_bytes: int


async def prefault(
    path: Path,
    *,
    size_bytes: int,
    offset_bytes: int = 0,
    page_size: int,
    policy: str = "none",
    nodes: tuple[int, ...] = (),
    threads: int = 0,
    mode: Mode = "populate",
    helper: Path | None = None,
    gentle: bool = False,
) -> AsyncGenerator[Progress, None]:
    """Bring in ``size_bytes`` of ``path`` from ``offset_bytes`` on, yielding progress about 5 times a second.

    Both are multiples of ``page_size``, the page size of the pool in bytes. ``policy`` is "none", or
    "bind", "interleave", "preferred" over the host ``nodes``. ``threads`` 0: one for each CPU we may run on, at
    most 16. ``mode`` "populate" leaves contents as they are; "zero" brings in and zeroes all; "scrub" zeroes what
    is not zero and proves it by reading; "verify-zero" only reads. The last two leave holes as holes. ``helper``
    replaces the program that came with the package. ``gentle``: others' CPU time comes first, as where a guest runs
    already that must not stand still. With ``nodes`` the threads run on their CPUs.

    Cancelling, or closing the generator (``contextlib.aclosing``), ends the helper before it returns: SIGTERM,
    after 5 s SIGKILL. The helper also ends with the thread that runs the event loop, however that ends
    (``PR_SET_PDEATHSIG`` in prctl(2) is about the thread that forked).

    :raise PrefaultFailed: When it could not do all of it, or there is no helper; what is done stays done.
    """
    program = helper or HELPER
    command = [str(program), "--mode", mode, "--size", str(size_bytes), "--page-size", str(page_size)]
    command += ["--offset", str(offset_bytes), "--policy", policy, "--threads", str(threads)]
    command += ["--parent", str(os.getpid())]
    if gentle:
        command += ["--background"]
    if nodes:
        command += ["--nodes", ",".join(map(str, nodes))]
    command += ["--", str(path)]
    process = _start(command)
    last: dict[str, Any] = {}
    words: list[str] = []
    try:
        async with _read(process) as lines:
            async for line in lines:
                event = _event(line)
                if event is None:  # standard error comes the same way; only its end is of use
                    words = [*words[-9:], line.decode(errors="replace").strip()]
                    continue
                last = event
                if event["event"] == "progress":
                    yield Progress(event["done"], event["total"])
        status = await _status(process)
    finally:
        await _end(process)
    if status or last.get("event") != "done":
        raise _failure(mode, path, status, last, " ".join(filter(None, words)))
    yield Progress(last["bytes"], size_bytes)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the helper. Not by asyncio's own: cancelled while it connects the pipes, that waits for ever."""
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise PrefaultFailed(
            f"The helper {command[0]} cannot be run: {error.strerror}.",
            hint="Install the package anew, or build it with 'python3 -m virt_dmem.native.build'.",
        ) from error


@contextlib.asynccontextmanager
async def _read(process: subprocess.Popen[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """Read what the helper says."""
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), process.stdout
    )
    with contextlib.closing(transport):
        yield lines


async def _status(process: subprocess.Popen[bytes]) -> int:
    """Wait until the helper has ended; return its status."""
    if process.poll() is None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
    return process.wait()


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b'{"event":'):
        return None
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no helper behind, whatever comes: a second cancellation only makes it quicker."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await _status(process)
    except (TimeoutError, asyncio.CancelledError) as why:
        process.kill()
        if isinstance(why, asyncio.CancelledError):
            raise
        await _status(process)


def _failure(mode: str, path: Path, status: int, last: dict[str, Any], words: str) -> PrefaultFailed:
    if last.get("event") == "error":
        reason, hint = last["message"], _HINTS.get(last["errno"], "Mend what the message names and try again.")
    elif status < 0 or last.get("event") == "stopped":
        number = -status if status < 0 else last["signal"]
        reason = f"the helper was ended by {signal.Signals(number).name}"
        hint = "Look in the kernel log for the OOM killer, or who else ended it, and try again."
    else:
        reason = f"the helper ended with status {status}: {words or 'it said nothing'}"
        hint = "This is a fault of virt-dmem; report it with this message."
    return PrefaultFailed(f"{_DID[mode].format(path)}: {reason}.", hint=hint)
