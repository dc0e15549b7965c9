# SPDX-License-Identifier: GPL-2.0-or-later
"""The second monitor: one that is silent, as that of a QEMU whose host is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from virt_dmem import monitor_xml
from virt_dmem.qmp import Monitors

UUID = "6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f0001"


def test_giving_up_a_silent_monitor_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon that ends gives them up: no error, nor its trace."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 107 bytes long
    monkeypatch.setattr(monitor_xml, "_DIRECTORY", ".")

    async def on_event(uuid: str, name: str, data: Mapping[str, Any]) -> None:
        raise AssertionError((uuid, name, data))

    async def story() -> None:
        met = asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(say_nothing, monitor_xml.socket_of(UUID))
        monitors = Monitors(on_event)
        monitors.follow({UUID})
        await met.wait()
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await monitors.close()
        assert not monitors.connected(UUID)
        server.close()

    asyncio.run(story())
    assert not caplog.records
