# SPDX-License-Identifier: GPL-2.0-or-later
"""Run virt-dmemd as a child process in the private namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.namespace import mount_points_below, require_private_namespace
from tests.rig.processes import Program, answers
from virt_dmem.native.programs import HELPER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Daemon"]

CONFIG = Path("/etc/virt-dmem/virt-dmem.toml")
SOCKET = Path("/run/virt-dmem/sock")
STATE = Path("/var/lib/virt-dmem")
LOG = Path("/var/log/libvirt/virt-dmemd.log")
"""Beside libvirt's logs, so that ``PrivateLibvirt.logs()`` includes it."""

_REPOSITORY = Path(__file__).parents[2]


class Daemon:
    """``python -m virt_dmem.daemon.main``; needs ``enter_private_namespace()`` before.

    ``config``: the text of virt-dmem.toml. ``env``: additional variables. ``under``: a command that executes its
    arguments, such as setpriv. ``module``: the module that runs as the daemon. ``forked``: see ``Program``.
    """

    def __init__(
        self,
        config: str = "",
        *,
        env: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        module: str = "virt_dmem.daemon.main",
        forked: bool = False,
    ) -> None:
        self.config = config
        self.log = LOG
        self.socket = SOCKET
        inherited = {key: value for key, value in os.environ.items() if key not in {"NOTIFY_SOCKET", "LISTEN_FDS"}}
        self.program = Program(
            "virt-dmemd",
            [*under, sys.executable, "-m", module, "--config", CONFIG],
            log=LOG,
            env=inherited | {"PYTHONPATH": str(_REPOSITORY), "PYTHONUNBUFFERED": "1"} | dict(env or {}),
            forked=forked,
        )

    def __enter__(self) -> Daemon:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.program.pid

    def start(self) -> None:
        """Write the configuration, start the daemon and wait until its socket accepts connections.

        :raise RigError: When it does not come up; with its log.
        """
        require_private_namespace()
        CONFIG.write_text(self.config)
        self.program.start()
        self.program.wait_until("its socket", lambda: answers(SOCKET))

    def stop(self) -> int | None:
        """Terminate it by SIGTERM; return its exit status."""
        return self.program.stop()

    def kill(self) -> None:
        """Kill it by SIGKILL, as a crash would."""
        self.program.kill()

    def restart_with_helper(self, directory: Path, script: str) -> None:
        """Restart it with a stand-in for the helper: a shell script, then the helper itself."""
        helper = directory / "helper"
        helper.write_text(f'#!/bin/sh\n{script}\nexec {HELPER} "$@"\n')
        helper.chmod(0o755)
        self.config = f'[prefault]\nhelper = "{helper}"\n'
        self.restart()

    @staticmethod
    def wipe() -> None:
        """Unmount all remaining pools and delete all state, as before the first start. Stop it first."""
        require_private_namespace()
        for mount in reversed(mount_points_below(SOCKET.parent)):
            subprocess.run(["umount", mount], check=True)
        for directory in (CONFIG.parent, SOCKET.parent, STATE):
            for entry in directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def restart(self) -> None:
        """Stop it if it is running, and start it."""
        self.stop()
        self.start()
