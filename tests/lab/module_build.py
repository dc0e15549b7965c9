# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the dmemfs module and its test programs for the lab's kernel with the lab's compiler, but on this machine.

On the emulated host that would take minutes. The build runs in a chroot in the image's root, which is not changed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.processes import RigError

if TYPE_CHECKING:
    from tests.lab.image import Image

__all__ = ["Built", "build"]

_SOURCE = Path(__file__).parents[2] / "kernel"
_IN_THE_ROOT = """
set -e
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc" # objtool of Linux 7 reads its limits
mount -t tmpfs tmp "$0/tmp"
mount --bind "$1" "$0/mnt"
exec chroot "$0" /bin/sh -ec '
    for modules in /lib/modules/*; do
        make -C /mnt -j2 W=1 KDIR=$modules/build modules
    done
    make -C /mnt/tests
' 2>&1
"""


@dataclasses.dataclass(frozen=True)
class Built:
    """The built files, and the output of make and the compiler."""

    module: bytes
    program: bytes
    vfio_program: bytes
    kvm_program: bytes
    keep_program: bytes
    said: str


def build(image: Image) -> Built:
    """Build ``kernel/`` for the kernel of ``image``.

    :raise RigError: When the build fails; with make's output.
    """
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "kernel"
        shutil.copytree(_SOURCE, source, ignore=shutil.ignore_patterns("*.o", "*.ko", ".*.cmd", "*.mod*"))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_THE_ROOT, image.root, source]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # 'make lab'
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=alone)
        if done.returncode:
            raise RigError(f"The dmemfs module does not build for {image.suite}:\n{done.stdout}")
        subprocess.run(["strip", "--strip-debug", source / "dmemfs.ko"], check=True)  # most of it
        programs = [
            (source / "tests" / name).read_bytes() for name in ("dmemtest", "vfiotest", "kvmtest", "keeptest")
        ]
        return Built((source / "dmemfs.ko").read_bytes(), *programs, done.stdout)
