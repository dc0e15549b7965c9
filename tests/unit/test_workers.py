# SPDX-License-Identifier: GPL-2.0-or-later
"""The turns of workers that share a run of tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.rig.workers import Turns


class Room:
    """Who is in it at the same time."""

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


def test_who_is_alone_has_nobody_beside_it_and_has_its_turn_though_others_never_pause(tmp_path: Path) -> None:
    room, done, shared = Room(), threading.Event(), threading.Event()
    inside = threading.Barrier(2, action=shared.set)

    def others() -> None:
        turns = Turns(tmp_path)
        with turns.turn(alone=False), room.entered(alone=False):
            inside.wait(60)  # both, or nobody shares
        while not done.is_set():
            with turns.turn(alone=False), room.entered(alone=False):
                pass

    def alone() -> None:
        try:
            assert shared.wait(60)  # before that it could wait for one that waits for the other
            for _ in range(20):
                with Turns(tmp_path).turn(alone=True), room.entered(alone=True):
                    pass
        finally:
            done.set()

    with ThreadPoolExecutor() as workers:
        for task in (*[workers.submit(others) for _ in range(2)], workers.submit(alone)):
            task.result()
    assert room.at_most == 2
