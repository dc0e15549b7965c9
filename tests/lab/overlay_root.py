# SPDX-License-Identifier: GPL-2.0-or-later
"""Enter a root directory without booting it, in a mount namespace of its own: writes go to a layer above it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.rig.processes import RigError

__all__ = ["OverlayRoot"]

_SET_UP = """
set -e
mount -t tmpfs -o "size=$2" layer "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" root "$1/root"
mount --rbind /dev "$1/root/dev"
mount --rbind /sys "$1/root/sys"
mount -t proc proc "$1/root/proc"
mount -t tmpfs run "$1/root/run"
cp /etc/resolv.conf /etc/hosts "$1/root/etc/"
cp -r /etc/apt/apt.conf.d/. "$1/root/etc/apt/apt.conf.d/"
echo up
exec sleep infinity
"""


class OverlayRoot:
    """A root directory with a layer above it, kept in memory, up to ``size`` as tmpfs takes it, until the end.

    It has this host's network settings, kernel and devices.
    """

    def __init__(self, root: Path, *, size: str = "2g") -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="virt-dmem-root-"))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SET_UP, root, self._scratch, size]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            self.close()
            raise RigError(f"No layer can be mounted above {root}.")
        self.directory = Path(f"/proc/{self._holder.pid}/root{self._scratch}/root")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Discard the layer."""
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def command(self, script: str) -> list[str]:
        """Return the command that runs a shell script there."""
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--wd=/", "chroot", f"{self._scratch}/root"]
        return [*enter, "sh", "-ec", script]

    def environment(self) -> dict[str, str]:
        """Return the environment of its commands: this host's proxies, and nothing else of this host's."""
        alone = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return alone | {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}

    def run(self, script: str) -> str:
        """Run a shell script, and return its output; fail when it does."""
        done = subprocess.run(
            self.command(f"exec 2>&1; {script}"),
            env=self.environment(), stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout
