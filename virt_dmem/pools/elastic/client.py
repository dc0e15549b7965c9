# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask virt-dmem-pages to take and give back huge pages: the daemon's part, on its event loop.

A caller that is cancelled closes the connection: what was to be taken is then given back there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from virt_dmem.errors import PoolError, PoolShort, error_from_code
from virt_dmem.os_errors import remedy
from virt_dmem.pools.backends.base import ProgressCallback
from virt_dmem.pools.elastic.wire import MOST_BYTES, Done, GiveBack, Progress, Refused, Reply, Request, Take, encode
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["give_back", "take"]

SILENCE_SECONDS = 600.0
"""How long it may say nothing: it serves one request after another, and compaction takes its time."""
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


async def take(socket: Path, pool: str, nodes: Mapping[int, int], report: ProgressCallback) -> SegmentId:
    """Have bytes by node taken for an elastic pool; return the new segment.

    :raise PoolShort: When its limits or the host forbid it.
    :raise PoolError: When virt-dmem-pages does not answer, or rejects it otherwise.
    """
    return await _ask(socket, Take(pool, dict(nodes)), report)


async def give_back(socket: Path, segment: SegmentId) -> None:
    """Have a segment given back to the host.

    :raise PoolBusy: When it is used after all.
    :raise PoolError: When virt-dmem-pages does not answer, or could not give all of it back.
    """
    await _ask(socket, GiveBack(str(segment)), lambda *_: None)


async def _ask(socket: Path, request: Request, report: ProgressCallback) -> SegmentId:
    writer = None
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=MOST_BYTES)
            writer.write(encode(request))
            await writer.drain()
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                line = await reader.readline()
            match _replies.decode(line):
                case Progress(doing, done_bytes, total_bytes):
                    report(doing, done_bytes, total_bytes)
                case Done(segment):
                    return SegmentId(segment)
                case Refused() as refused:
                    raise _refusal(refused)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError; an end without an answer is no JSON
        why = "it ended, or did not answer" if isinstance(error, ValueError | TimeoutError) else error.strerror
        raise PoolError(
            f"virt-dmem-pages, which takes and gives back huge pages, cannot be asked at {socket}: {why}.",
            hint=(remedy(error, socket) if isinstance(error, OSError) else "")
            or "See 'systemctl status virt-dmem-pages.socket virt-dmem-pages.service'; without"
            " systemd run /usr/lib/virt-dmem/pages.",
        ) from error
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _refusal(refused: Refused) -> Exception:
    error = error_from_code(refused.code, refused.message, refused.hint)
    if isinstance(error, PoolShort):
        error.had = dict(refused.had)
    return error
