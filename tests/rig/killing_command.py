# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a ``virt-dmem`` command in a separate process that is killed by SIGKILL right before its N-th step.

A step is any external effect: each file opened for writing (huge pages and HVO are such files), created, renamed
or removed, each program run (before it, and while it runs), each call to virt-dmemd, before and after it.
Counted from outside, by Python's audit events: the product has no code for this.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig.killing import _EVENTS, _writes
from virt_dmem.cli.main import main
from virt_dmem.ipc.client import Client

__all__ = ["Ending", "command_killed_before"]


@dataclass(frozen=True)
class Ending:
    """The end of a command: the step before which it was killed, or its exit status; and its output."""

    step: str
    status: int | None
    said: str


def command_killed_before(number: int | None, *args: str, beside: int | None = None) -> Ending:
    """Run ``virt-dmem ARGS`` and kill it before its step ``number``, and the process ``beside`` in the same moment.

    With ``None`` for the number it runs to its end.
    """
    with tempfile.NamedTemporaryFile() as said, tempfile.NamedTemporaryFile() as mark:
        child = os.fork()
        if child == 0:
            status = 255
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
                if number is not None:
                    _arm(number, Path(mark.name), beside)
                status = main(list(args))
            finally:
                os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        step = Path(mark.name).read_text()
        killed = os.WIFSIGNALED(wait_status) and os.WTERMSIG(wait_status) == signal.SIGKILL
        assert killed == bool(step)
        return Ending(step, None if killed else os.waitstatus_to_exitcode(wait_status), Path(said.name).read_text())


def _arm(number: int, mark: Path, beside: int | None) -> None:
    done = 0
    armed = True

    def step(what: str) -> None:
        nonlocal done, armed
        if armed and done == number:
            armed = False  # the mark is no step
            mark.write_text(what)
            if beside is not None:
                os.kill(beside, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        done += armed

    def audit(event: str, args: tuple[object, ...]) -> None:
        if armed and event in _EVENTS and (event != "open" or _writes(args)) and args[0] != os.devnull:
            step(f"{event} {args[0]}" + (f" {args[1]}" if event == "subprocess.Popen" else ""))

    call, start = Client.call, subprocess.Popen.__init__

    def asked(self: Client, command: str, **args: Any) -> Any:
        step(f"before {command}")
        answer = call(self, command, **args)
        step(f"after {command}")
        return answer

    def started(self: Any, command: Any, *args: Any, **more: Any) -> None:
        start(self, command, *args, **more)
        step(f"while {command[0]} runs")

    Client.call = asked  # type: ignore[assignment,method-assign]
    subprocess.Popen.__init__ = started  # type: ignore[assignment,method-assign]
    sys.addaudithook(audit)
