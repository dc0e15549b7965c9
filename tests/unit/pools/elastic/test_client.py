# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon makes of the answers of virt-dmem-pages, and of none; the other side is a fake."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from virt_dmem.errors import PoolBusy, PoolError, PoolShort
from virt_dmem.pools.elastic import client
from virt_dmem.pools.elastic.wire import MOST_BYTES, Done, Progress, Refused, encode


def asked(tmp_path: Path, *lines: bytes) -> tuple[str, list[tuple[str, int, int]]]:
    heard: list[tuple[str, int, int]] = []

    async def story() -> str:
        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.writelines(lines)
            writer.close()

        server = await asyncio.start_unix_server(say, tmp_path / "socket")
        try:
            return await client.take(tmp_path / "socket", "p", {0: 1}, lambda *step: heard.append(step))
        finally:
            server.close()

    return asyncio.run(story()), heard


def test_progress_is_passed_on_and_the_segment_returned(tmp_path: Path) -> None:
    said = [encode(Progress("taking", 1, 2)), encode(Progress("taking", 2, 2)), encode(Done("p+1"))]
    assert asked(tmp_path, *said) == ("p+1", [("taking", 1, 2), ("taking", 2, 2)])


def test_an_error_is_of_the_same_class_here(tmp_path: Path) -> None:
    with pytest.raises(PoolShort, match="Too little") as caught:
        asked(tmp_path, encode(Refused(PoolShort.code, "Too little.", "Ask for less.", {0: 5})))
    assert (caught.value.hint, caught.value.had) == ("Ask for less.", {0: 5})
    with pytest.raises(PoolBusy):
        asked(tmp_path, encode(Refused(PoolBusy.code, "Used.", "")))


@pytest.mark.parametrize("lines", [[], [b"what\n"], [b'{"type":"done"'], [b"x" * (2 * MOST_BYTES)]])
def test_no_answer_and_nonsense_are_errors_in_words(tmp_path: Path, lines: list[bytes]) -> None:
    with pytest.raises(PoolError, match="cannot be asked"):
        asked(tmp_path, *lines)


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="No such file"):
        asyncio.run(client.take(tmp_path / "none", "p", {0: 1}, lambda *_: None))
