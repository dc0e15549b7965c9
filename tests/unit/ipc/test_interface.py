# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls in progress end at shutdown, and the interface stays as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from virt_dmem.daemon.views import ControlInterface
from virt_dmem.ipc.interface import Calls


def test_what_is_asked_of_one_that_ends_is_never_begun() -> None:
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


def test_the_interface_is_that_of_earlier_versions(require_golden: Callable[[bytes, str], None]) -> None:
    require_golden(
        ControlInterface.render_interface_description(comments=False).encode(), "control-interface.varlink"
    )
