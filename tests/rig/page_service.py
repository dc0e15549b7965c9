# SPDX-License-Identifier: GPL-2.0-or-later
"""Run virt-dmem-pages as a child process in the private namespace, with the restrictions of its unit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

from tests.rig.daemon import CONFIG
from tests.rig.processes import Program, answers
from tests.rig.sandbox import restricted_as

__all__ = ["PageService"]

SOCKET = Path("/run/virt-dmem/sock-pages")
LOG = Path("/var/log/libvirt/virt-dmem-pages.log")
"""Beside libvirt's logs, so that ``PrivateLibvirt.logs()`` includes it."""
_REPOSITORY = Path(__file__).parents[2]


class PageService:
    """``python -m virt_dmem.page_service.main``; use it as a context manager."""

    def __init__(self) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in {"NOTIFY_SOCKET", "LISTEN_FDS"}}
        self.program = Program(
            "virt-dmem-pages",
            [
                *restricted_as("virt-dmem-pages.service"),
                sys.executable,
                "-m",
                "virt_dmem.page_service.main",
                "--config",
                CONFIG,
            ],
            log=LOG,
            env=inherited | {"PYTHONPATH": str(_REPOSITORY), "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self) -> PageService:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()

    def start(self) -> None:
        """Start it, and wait until its socket accepts connections."""
        self.program.start()
        self.program.wait_until("its socket", lambda: answers(SOCKET))

    def kill(self) -> None:
        """Kill it by SIGKILL, as a crash would."""
        self.program.kill()
