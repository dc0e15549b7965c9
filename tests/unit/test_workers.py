# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of a run are distributed to workers, and one at a time may have the host to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.rig.workers import HostLock


class Room:
    """The tests that run at the same time."""

    def __init__(self) -> None:
        self.now: list[bool] = []
        self.at_most = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        self.now.append(alone)
        self.at_most = max(self.at_most, len(self.now))
        assert self.now in ([True], [False] * len(self.now))
        yield
        self.now.remove(alone)


def test_a_test_alone_has_no_other_beside_it_and_is_run_though_others_never_pause(tmp_path: Path) -> None:
    room, done, shared = Room(), threading.Event(), threading.Event()
    inside = threading.Barrier(2, action=shared.set)

    def others() -> None:
        host = HostLock(tmp_path)
        with host.held(alone=False), room.entered(alone=False):
            inside.wait(60)  # both are in it, or none shares
        while not done.is_set():
            with host.held(alone=False), room.entered(alone=False):
                pass

    def alone() -> None:
        try:
            assert shared.wait(60)  # before that it could wait for one that waits for the other
            for _ in range(20):
                with HostLock(tmp_path).held(alone=True), room.entered(alone=True):
                    pass
        finally:
            done.set()

    with ThreadPoolExecutor() as workers:
        for task in (*[workers.submit(others) for _ in range(2)], workers.submit(alone)):
            task.result()
    assert room.at_most == 2
