# SPDX-License-Identifier: GPL-2.0-or-later
"""Have this machine's kernel run arm64 programs by QEMU's user emulation, as long as a root of arm64 is built.

binfmt_misc(5) is the kernel's and not a namespace's, so the entry is there for all of this machine meanwhile.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes import RigError

__all__ = ["COMPILER", "arm64_emulated"]

_NAME = "virt-dmem-lab-arm64"
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
"""Any ABI's ELF of 64 bits, little-endian, of an executable or a shared object, of machine 183: AArch64."""
_REGISTER = f"""
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
cd /proc/sys/fs/binfmt_misc
[ ! -e {_NAME} ] || echo -1 >{_NAME} # of one that was killed
printf %s "$0" >register
echo registered
cat
echo -1 >{_NAME}
"""
"""It ends with its input. The entry goes with the last mount, too, so it must stay mounted."""

COMPILER = """
mkdir -p "$0/lib64" "$0/usr/lib/x86_64-linux-gnu"
mount --bind "$2/usr/lib64" "$0/lib64"
mount --bind "$2/usr/lib/x86_64-linux-gnu" "$0/usr/lib/x86_64-linux-gnu"
mount --bind "$2/usr/libexec/gcc-cross/aarch64-linux-gnu/14/cc1" "$0/usr/libexec/gcc/aarch64-linux-gnu/14/cc1"
[ -e "$0/usr/lib/gcc-cross" ] || ln -s gcc "$0/usr/lib/gcc-cross" # it looks for its headers there
"""
"""Lend the root $0 the compiler proper of the cross compiler in the root $2: emulated, its own takes minutes."""


@contextmanager
def arm64_emulated(interpreter: Path) -> Iterator[None]:
    """Run the body while ``interpreter`` runs programs of arm64; it is opened now, so also in any chroot.

    :raise RigError: When the kernel has no binfmt_misc.
    """
    entry = f":{_NAME}:M::{_MAGIC}:{_MASK}:{interpreter}:F"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _REGISTER, entry]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "registered\n":
            raise RigError("This machine's kernel cannot be told to run programs of arm64 by QEMU.")
        yield
