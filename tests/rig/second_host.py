# SPDX-License-Identifier: GPL-2.0-or-later
"""Run another libvirt host on the same machine: a libvirtd and a virt-dmemd in a separate mount namespace.

``python -m tests.rig.second_host UUID`` is that host; ``SecondHost`` starts it, and runs commands on it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rig.daemon import Daemon
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError

__all__ = ["SecondHost"]

_REPOSITORY = Path(__file__).parents[2]
_COMMAND = str(Path(sys.executable).with_name("virt-dmem"))


class SecondHost:
    """A context manager; ``managed``: with virt-dmem's hook and daemon; ``module``: see ``Daemon``."""

    def __init__(self, *, managed: bool = True, config: str = "", module: str = "virt_dmem.daemon.main") -> None:
        self._managed = managed
        self._module = module
        self._config = config
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> SecondHost:
        arguments = ["yes" if self._managed else "no", self._config, self._module]
        # outside this mount namespace, whose /etc/libvirt is the first host's: it mounts its own over it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.second_host", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY,
        )  # fmt: skip
        try:
            self._answer()
        except RigError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(300)

    @property
    def root(self) -> Path:
        """Return the root directory of that host."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root")

    @property
    def uri(self) -> str:
        """The URI of its libvirt, for clients in this namespace."""
        return f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"

    def kill_daemon(self) -> None:
        """Kill its virt-dmemd by SIGKILL."""
        self._ask("kill")

    def start_daemon(self) -> None:
        """Start it again."""
        self._ask("start")

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command there; return both of its outputs.

        :raise RigError: With ``check``, when it fails.
        """
        assert self._process is not None
        enter = ["nsenter", "-m", "-r", "-t", str(self._process.pid)]  # its root may be below the namespace's
        done = subprocess.run(
            [*enter, *command],
            input=stdin, capture_output=True, text=True, timeout=600, check=False, cwd="/",
        )  # fmt: skip
        if check and done.returncode:
            raise RigError(f"{' '.join(command)} on the second host: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def virsh(self, *args: str, check: bool = True, stdin: str = "") -> str:
        """Run virsh there."""
        return self.run("virsh", "-q", "-c", "qemu:///system", *args, check=check, stdin=stdin).strip()

    def virt_dmem(self, *args: str) -> str:
        """Run virt-dmem there."""
        return self.run(_COMMAND, *args)

    def virt_dmem_json(self, *args: str) -> Any:
        """Run virt-dmem --json there."""
        return json.loads(self.virt_dmem(*args, "--json"))

    def _ask(self, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        if (said := self._process.stdout.readline()) != "done\n":
            raise RigError(f"The second host says {said!r}.")


def _serve(managed: str, config: str, module: str) -> None:
    enter_private_namespace()
    hook = HOOK if managed == "yes" else None
    host_uuid = str(uuid.uuid4())
    with PrivateLibvirt(hook=hook, host_uuid=host_uuid) as libvirtd, Daemon(config, module=module) as daemon:
        print("done", flush=True)
        for line in sys.stdin:
            if line == "kill\n":
                daemon.kill()
            else:
                daemon.start()
            print("done", flush=True)
        libvirtd.remove()
        daemon.stop()
    Daemon.wipe()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ended by its parent
    os.environ.setdefault("LC_ALL", "C")
    _serve(*sys.argv[1:])
