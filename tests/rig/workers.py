# SPDX-License-Identifier: GPL-2.0-or-later
"""Distribute one run of tests to workers (pytest-xdist), and let a test have the host to itself."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

__all__ = ["ByGroup", "HostLock", "write_groups"]

_GROUPS = "groups.json"


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Distributes tests in the order in which they were collected: those of a group together, others one by one.

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


class HostLock:
    """A lock on the host, shared or exclusive, by two files in ``directory``; each worker has its own object.

    A test that waits for the exclusive lock holds the door meanwhile: no other enters, so that it does not wait for
    ever. No child of a worker has the locks after an exec, and only the process that took one releases it.
    """

    def __init__(self, directory: Path) -> None:
        self._door = (directory / "door.lock").open("w")
        self._room = (directory / "room.lock").open("w")

    @contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Hold the lock in this context, exclusively for a test that is ``alone``."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
