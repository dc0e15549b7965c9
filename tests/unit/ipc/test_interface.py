# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in progress end at shutdown."""

from __future__ import annotations

import asyncio

import pytest

from virt_dmem.ipc.interface import Calls


def test_calls_that_come_at_shutdown_are_never_begun() -> None:
    begun = []

    async def prepare() -> None:
        begun.append(True)

    async def story() -> None:
        calls = Calls()
        await calls.begin(prepare())
        await calls.close()
        with pytest.raises(asyncio.CancelledError):
            await calls.begin(prepare())

    asyncio.run(story())
    assert begun == [True]
