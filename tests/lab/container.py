# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot a root directory as a container: a Debian host with a systemd of its own, at this machine's speed.

For what needs the units of a whole host, but neither KVM nor a kernel of its own, which ``Machine`` has.
systemd-nspawn needs no systemd on this machine, and shows cgroup v2 to the container even if this machine has v1.
The kernel, and with it huge pages, is this machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.lab.host import PATIENCE, Done, Host, LabCommandFailed
from tests.lab.image import PROJECT, pack_tree
from tests.rig.processes import RigError, tail, wait_for

__all__ = ["Container"]

_BOOT = """
set -e
mount -t overlay -o "lowerdir=$1,upperdir=$0/upper,workdir=$0/work" root "$0/root"
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
shift
exec systemd-nspawn --register=no --keep-unit --quiet --directory="$0/root" --boot --console=read-only "$@"
"""
_THIS_MACHINES = (
    *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("systemd-udev-trigger.service", "systemd-sysctl.service", "systemd-modules-load.service"),
)
"""Units that would change this machine's devices and settings."""
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
_FROM_ITS_ROOT = ("sh", "-c", 'cd / && exec "$0" "$@"')
"""nsenter(1) of Debian 12 can only enter a directory of this machine."""
_POWER_OFF = signal.SIGRTMIN + 4


class Container(Host):
    """A booted root directory, with the project's tree in ``PROJECT``; its writes go to a layer that goes with it.

    ``network``: the container whose network it shares; without, it has a loopback of its own.
    """

    def __init__(self, root: Path, *, name: str = "host1", network: Container | None = None) -> None:
        self.name = name
        self._root, self._network = root, network
        self._scratch = Path(tempfile.mkdtemp(prefix=f"virt-dmem-{name}-"))
        for directory in ("upper/etc/systemd/system", f"upper{PROJECT}", "work", "root"):
            (self._scratch / directory).mkdir(parents=True)
        for unit in _THIS_MACHINES:
            (self._scratch / "upper/etc/systemd/system" / unit).symlink_to("/dev/null")
        (self._scratch / "upper/etc/hostname").write_text(f"{name}\n")
        self._console = self._scratch / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.leader = 0
        """The process id of its init, as this machine sees it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Boot it, and wait until its units have started.

        :raise RigError: When it does not come up; with its console.
        """
        options = [f"--machine={self.name}", "--capability=all"]
        if self._network is None:
            options.append("--private-network")
        else:
            options.append(f"--network-namespace-path=/proc/{self._network.leader}/ns/net")
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, self._scratch, self._root]
        settings = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                env=os.environ | settings, start_new_session=True,
            )  # fmt: skip
        try:
            self.leader = wait_for(f"{self.name} to boot", self._find_leader)
            wait_for(f"{self.name}'s units", self._is_up, timeout=60)
        except RigError as error:
            said = self.console_tail()
            self.shut_down()
            raise RigError(f"{error}\n{said}") from None

    def shut_down(self) -> None:
        """Shut it down as an administrator does; ``start`` boots it again."""
        if self._process is not None:
            if self.leader:
                os.kill(self.leader, _POWER_OFF)
            try:
                self._process.wait(30 * PATIENCE)
            except subprocess.TimeoutExpired:
                os.kill(self.leader or self._process.pid, signal.SIGKILL)  # with its init all of it ends
                self._process.wait()
        self._process, self.leader = None, 0

    def close(self) -> None:
        """End it, and discard its writes."""
        self.shut_down()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def unpack_project(self) -> None:
        """Put the project's current files into ``PROJECT``, beside the .venv and .cache of its root."""
        with tempfile.TemporaryDirectory() as directory:
            tree = Path(directory) / "tree.tar"
            pack_tree(tree)
            self.run(["/usr/bin/tar", "-C", PROJECT, "-xf", "-"], stdin=tree.read_bytes())

    def run(
        self, command: str | Sequence[str], *, stdin: str | bytes = b"", timeout: float = 180.0, check: bool = True
    ) -> Done:
        """Run a command, as ``Host`` describes it."""
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        try:
            ended = subprocess.run(
                self.entering(argv),
                input=stdin.encode() if isinstance(stdin, str) else stdin,
                capture_output=True, env=_ENVIRONMENT, timeout=timeout * PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RigError(f"{shlex.join(argv)}: has not ended after {timeout:g} s") from None
        done = Done(ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"))
        if check and done.status:
            raise LabCommandFailed(command if isinstance(command, str) else shlex.join(command), done)
        return done

    def begin(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program with pipes to its input and from its output; its errors go to those of this process."""
        return subprocess.Popen(
            self.entering(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENVIRONMENT
        )

    def entering(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs a program in it."""
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
        return ["nsenter", f"--target={self.leader}", *spaces, *_FROM_ITS_ROOT, *argv]

    def console_tail(self) -> str:
        """Return the end of its console's output."""
        return tail(self._console)

    def _find_leader(self) -> int:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RigError(f"{self.name} ended with status {self._process.returncode}.")
        nspawn = self._process.pid
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
        return 0

    def _is_up(self) -> bool:
        state = self.run(["/usr/bin/systemctl", "is-system-running"], check=False)
        return state.stdout.strip() in {"running", "degraded"}
