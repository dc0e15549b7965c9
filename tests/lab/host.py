# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe what tests do on a host of the lab, whether it is a machine or a container."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tests.rig.processes import RigError

__all__ = ["PATIENCE", "Done", "Host", "LabCommandFailed"]

PATIENCE = float(os.environ.get("LAB_PATIENCE", "2"))
"""Factor for all timeouts: increase it if the machine's CPUs are busy."""


@dataclasses.dataclass(frozen=True)
class Done:
    """The result of a command on the lab's host."""

    status: int
    stdout: str
    stderr: str


class LabCommandFailed(AssertionError):
    """A command on the lab's host failed; with its complete output."""

    def __init__(self, command: str, done: Done) -> None:
        super().__init__(f"{command}\nstatus {done.status}\n{done.stdout}{done.stderr}".rstrip())
        self.done = done


class Host(ABC):
    """A booted Debian host on which commands can be run."""

    @abstractmethod
    def run(
        self, command: str | Sequence[str], *, stdin: str | bytes = b"", timeout: float = 180.0, check: bool = True
    ) -> Done:
        """Run a shell command, or a program with arguments, as root.

        :raise LabCommandFailed: With ``check``, when its status is not 0.
        :raise RigError: When it has not ended after ``timeout`` seconds.
        """

    @abstractmethod
    def console_tail(self) -> str:
        """Return the end of its console's output."""

    def json(self, command: str, **options: Any) -> Any:
        """Run a command and return its decoded JSON output."""
        return json.loads(self.run(command, **options).stdout)

    def write(self, path: str, text: str | bytes) -> None:
        """Write a file; its directory must exist."""
        self.run(["/usr/bin/dd", "status=none", f"of={path}"], stdin=text or b"\n")

    def wait_for(self, command: str, *, timeout: float = 60.0) -> str:
        """Repeat a shell command until its status is 0; return its output.

        :raise LabCommandFailed: After ``timeout`` seconds; with its last output.
        """
        deadline = time.monotonic() + timeout * PATIENCE
        pause = 0.3
        while (done := self.run(command, check=False)).status:
            if time.monotonic() > deadline:
                raise LabCommandFailed(f"waited {timeout:g} s in vain for: {command}", done)
            time.sleep(pause)  # polling takes CPU time from the awaited work
            pause = min(pause * 1.5, 5)
        return done.stdout

    def logs(self) -> dict[str, str]:
        """Return the ends of the logs by name, for the report of a failure."""
        logs = {"console": self.console_tail()}
        wanted = {
            "kernel log": "dmesg | tail -n 40",
            "journal": "journalctl --no-pager -b -n 300 -o short-monotonic | grep -v qemu-ga | tail -n 80",
            "libvirt and QEMU": "tail -n 30 /var/log/libvirt/qemu/*.log /var/log/libvirt/consoles/*.log",
            "nova": "tail -n 40 /var/log/nova/*.log 2>/dev/null",
        }
        for name, command in wanted.items():
            try:
                done = self.run(command, check=False, timeout=60)
                logs[name] = done.stdout + done.stderr
            except (RigError, ValueError, OSError) as error:
                logs[name] = f"cannot be had: {error}"
        return logs
