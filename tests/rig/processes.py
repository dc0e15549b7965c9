# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and end the rig's programs, by process id only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.rig.keeper import PID_DIR, Kept, keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["PATIENCE", "PID_DIR", "Program", "RigError", "answers", "end", "tail", "wait_for"]

PATIENCE = float(os.environ.get("VIRT_DMEM_TEST_PATIENCE", "4"))
"""Factor by which limits here exceed what an idle machine needs."""

T = TypeVar("T")


class RigError(Exception):
    """The rig itself failed, not the tested code."""


def wait_for(what: str, condition: Callable[[], T], *, timeout: float = 30.0) -> T:
    """Poll ``condition`` until it is true, and return its value; frequently at first, then ten times a second.

    :raise RigError: After ``timeout`` seconds, naming ``what``.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    pause = 0.01
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise RigError(f"Waited {timeout * PATIENCE:g} s in vain for {what}.")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return answer


def answers(path: Path) -> bool:
    """Return whether the unix socket ``path`` accepts connections."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def tail(path: Path, lines: int = 60) -> str:
    """Return the last ``lines`` of a log; empty when it does not exist."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-lines:])


def end(pid: int, program: str = "") -> None:
    """Kill ``pid`` and wait until it is gone; with ``program``, only if its name starts with that."""
    stat = Path(f"/proc/{pid}/stat")

    def gone() -> bool:
        try:
            name, _, fields = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            return True
        return fields.split()[0] == "Z" or not name.startswith(program)

    if not gone():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(f"the end of process {pid}", gone, timeout=20)


class Program:
    """A program in the foreground with its output in a file; the keeper starts it, and ends it at the latest.

    ``forked``: where the command is ``python -m MODULE``, it is a fork of the keeper's Python (see there).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        forked: bool = False,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = dict(env)
        self.forked = forked
        self._process: Kept | None = None

    @property
    def pid(self) -> int:
        """The process id.

        :raise RigError: When it is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise RigError(f"{self.name} does not run.\n{tail(self.log)}")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether it is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, appending to its log."""
        if self.running:
            raise RigError(f"{self.name} runs already.")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        starter = keeper()
        if starter is None:
            raise RigError(f"{self.name}: call enter_private_namespace() first.")
        forked = self.forked and self.command[:2] == [sys.executable, "-m"]
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            streams = [nothing.fileno(), log.fileno(), log.fileno()]
            self._process = starter.start(self.command, streams, self.env, forked=forked)
        PID_DIR.mkdir(exist_ok=True)
        (PID_DIR / f"{self.name}.pid").write_text(f"{self._process.pid}\n")

    def wait_until(self, what: str, condition: Callable[[], T], *, timeout: float = 60.0) -> T:
        """Wait for ``condition``, or fail immediately with the log if the program ends before that."""

        def alive_and_so() -> T:
            _ = self.pid  # raises when it ended
            return condition()

        return wait_for(f"{self.name}: {what}", alive_and_so, timeout=timeout)

    def stop(self, *, timeout: float = 15.0) -> int | None:
        """Send SIGTERM, after ``timeout`` seconds SIGKILL; return the exit status, None if it was not running."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> int | None:
        """Send SIGKILL, as a crash would; return the exit status, None if it was not running."""
        return self._end(signal.SIGKILL, 15.0)

    def _end(self, number: signal.Signals, timeout: float) -> int | None:
        process, self._process = self._process, None
        (PID_DIR / f"{self.name}.pid").unlink(missing_ok=True)
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout * PATIENCE)
