# SPDX-License-Identifier: GPL-2.0-or-later
"""The workers of one run of tests (pytest-xdist): who gets which test, and when a test has the host to itself."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

__all__ = ["ByGroup", "Turns", "write_groups"]

_GROUPS = "groups.json"


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Gives tests away in the order in which they were collected: those of a group together, others one by one.

    Not xdist's ``loadgroup``: it writes the group into the node id, which pytest 9.2 does not take. Here the
    workers write down in ``directory`` what the groups are, before they say that they have collected.
    """

    def __init__(self, config: Any, log: Any, directory: Path) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False
        self._file = directory / _GROUPS
        self._groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:
            self._groups = json.loads(self._file.read_text("utf-8"))
        return self._groups.get(nodeid, nodeid)


def write_groups(directory: Path, worker: str, groups: Mapping[str, str]) -> None:
    """Write down the group of each test that has one, by node id; all workers find the same."""
    new = directory / f"{_GROUPS}.{worker}"
    new.write_text(json.dumps(groups), "utf-8")
    new.rename(directory / _GROUPS)


class Turns:
    """Two lock files in ``directory``, which all workers of a run have; each worker has a ``Turns`` of its own.

    Who waits to be alone holds the door: nobody else comes in meanwhile, so that it does not wait for ever. No
    child of the worker's has the locks after an exec, and who takes one gives it back itself.
    """

    def __init__(self, directory: Path) -> None:
        self._door = (directory / "door.lock").open("w")
        self._room = (directory / "room.lock").open("w")

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait until the test may run, and let it."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
