# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``virt-dmem-prefault``, the C helper that populates, zeroes or reads all memory of an extent.

A program of its own, because that takes seconds to minutes in threads, can be killed by SIGBUS or the OOM killer,
and has to be stopped immediately. ``virt-dmem-prefault --help`` describes its modes and events.
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
from virt_dmem.os_errors import remedy

__all__ = ["prefault", "Mode", "Progress"]

Mode = Literal["populate", "zero", "scrub", "verify-zero"]

_GRACE_SECONDS = 5.0
"""Time that the helper may take to exit after SIGTERM; it checks about every 50 ms (one page of 1 GiB: longer)."""

_DID = {
    "populate": "The memory of {} was not populated",
    "zero": "{} was not zeroed",
    "scrub": "{} was not scrubbed",
    "verify-zero": "{} is not completely zero",
}

_HINTS = {
    "ENOMEM": "Check the free memory of the pool with 'virt-dmem pool show', and cgroup limits.",
    "EHWPOISON": "Stop using this memory, and find the machine check in the kernel log.",
    "EIO": "Check the nodes of the file's pages, and the kernel log.",
    "EUCLEAN": "Do not use it for another domain before it is scrubbed.",
}


@dataclass(frozen=True)
class Progress:
    """Progress of the helper; the last one has ``done_bytes == total_bytes``."""

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
    """Populate ``size_bytes`` of ``path`` from ``offset_bytes`` on, yielding progress about 5 times a second.

    Both are multiples of ``page_size``, the page size of the pool in bytes. ``policy`` is "none", or
    "bind", "interleave", "preferred" over the host ``nodes``. ``threads`` 0: one for each CPU allowed, at most 16.
    ``mode`` "populate" keeps contents; "zero" populates and zeroes all; "scrub" zeroes what is not zero and
    verifies it by reading; "verify-zero" only reads. The last two keep holes. ``helper`` replaces the program of
    the package. ``gentle``: run at the lowest priority, where a running guest must not be stalled. With ``nodes``
    the threads run on their CPUs.

    Cancelling, or closing the generator (``contextlib.aclosing``), ends the helper before it returns: SIGTERM,
    after 5 s SIGKILL. The helper also ends with the thread that runs the event loop, however that ends
    (``PR_SET_PDEATHSIG`` in prctl(2) is about the thread that forked).

    :raise PrefaultFailed: When it did not complete, or there is no helper; what is done stays done.
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
                if event is None:  # standard error comes the same way; only its end is useful
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
    """Start the helper; not by asyncio, which hangs when it is cancelled while it connects the pipes."""
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
            f"The helper {command[0]} cannot be executed: {error.strerror}.",
            hint=remedy(error, command[0])
            or "Reinstall the package, or build it with 'python3 -m virt_dmem.native.build'.",
        ) from error


@contextlib.asynccontextmanager
async def _read(process: subprocess.Popen[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """Read the output of the helper."""
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), process.stdout
    )
    with contextlib.closing(transport):
        yield lines


async def _status(process: subprocess.Popen[bytes]) -> int:
    """Wait until the helper has exited; return its status."""
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
    """Stop the helper, whatever happens: a second cancellation only makes it faster."""
    if process.returncode is not None:
        return
    _restore_priority(process.pid)
    process.terminate()
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await _status(process)
    except (TimeoutError, asyncio.CancelledError) as why:
        process.kill()
        if isinstance(why, asyncio.CancelledError):
            raise
        await _status(process)


def _restore_priority(session: int) -> None:
    """Let all threads of a helper run as others do, since a domain may wait for the page that each is in.

    At the lowest priority that one page takes seconds where guests use all CPUs. Needs no capability below
    RLIMIT_NICE, which the daemon's unit sets. Of sched(7): nice is one of a thread, and of a session.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, session, 0)
    with contextlib.suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text("0", encoding="ascii")


def _failure(mode: str, path: Path, status: int, last: dict[str, Any], words: str) -> PrefaultFailed:
    if last.get("event") == "error":
        reason, hint = last["message"], _HINTS.get(last["errno"], "Fix what the message names and try again.")
    elif status < 0 or last.get("event") == "stopped":
        number = -status if status < 0 else last["signal"]
        reason = f"the helper was killed by {signal.Signals(number).name}"
        hint = "Check the kernel log for the OOM killer, or find out what else killed it, and try again."
    else:
        reason = f"the helper exited with status {status}: {words or 'no message'}"
        hint = "This is a bug of virt-dmem; report it with this message."
    return PrefaultFailed(f"{_DID[mode].format(path)}: {reason}.", hint=hint)
