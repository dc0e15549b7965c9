# SPDX-License-Identifier: GPL-2.0-or-later
"""Have this machine's kernel run arm64 programs by QEMU's user emulation, as long as a root of arm64 is built.

binfmt_misc(5) is the kernel's and not a namespace's, so the entry is there for all of this machine meanwhile.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes import RigError

__all__ = ["COMPILER", "EMULATORS", "LEND", "LENT", "arm64_emulated", "provide_programs"]

_SOURCE = Path(__file__).with_name("interpreter.c")
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

EMULATORS = """
    qemu-system-arm qemu-user binutils-aarch64-linux-gnu gcc-14-aarch64-linux-gnu
    bash coreutils dash debianutils diffutils dpkg findutils grep gzip kmod
    libpython3.13-stdlib make mawk perl-base python3.13-minimal sed tar xz-utils
"""
"""The packages of a root that lends its programs: QEMU, a cross compiler, and what ``LENT`` are of."""
LENT = """
    bash dash sed grep egrep fgrep mawk find xargs tar gzip gunzip zcat xz xzcat perl dpkg-deb dpkg-split
    update-alternatives savelog run-parts cmp diff depmod python3.13 basename cat chgrp chmod chown comm cp cut date
    dd dirname echo env expr false head id install join ln ls make md5sum mkdir mkfifo mknod mktemp mv nl paste
    printf pwd readlink realpath rm rmdir seq sha256sum sleep sort stat tail tee test [ touch tr true tty uniq
    unlink wc whoami
"""
"""Those that do the same whichever architecture they are of, so this machine's own run: interpreter.c."""
_ALIASES = {
    **{"sh": "dash", "awk": "mawk", "python3": "python3.13"},
    **{name: f"aarch64-linux-gnu-{name}" for name in ("as", "gcc-14")},
}
LEND = """
mkdir -p "$root/.native" "$root/usr/lib64" "$root/usr/lib/x86_64-linux-gnu"
[ -e "$root/lib64" ] || ln -s usr/lib64 "$root/lib64"
for of in .native usr/lib64 usr/lib/x86_64-linux-gnu; do
    mount --bind "$native/${of#.native}" "$root/$of"
    mount -o remount,bind,ro "$root/$of"
done
"""
"""Mount read-only to the root $root what it borrows from the root $native."""
COMPILER = """
cc1=aarch64-linux-gnu/14/cc1 # emulated, its own takes minutes
mount --bind "$native/usr/libexec/gcc-cross/$cc1" "$root/usr/libexec/gcc/$cc1"
[ -e "$root/usr/lib/gcc-cross" ] || ln -s gcc "$root/usr/lib/gcc-cross" # it looks for its headers there
"""
"""Lend it the compiler proper, too."""


def provide_programs(native: Path) -> None:
    """Put links to the programs that are lent into one directory of an unpacked root of ``EMULATORS``."""
    (native / "programs").mkdir()
    for name, program in {**{name: name for name in LENT.split()}, **_ALIASES}.items():
        (place,) = (place for place in ("bin", "sbin") if (native / "usr" / place / program).exists())
        (native / "programs" / name).symlink_to(f"../usr/{place}/{program}")


@contextmanager
def arm64_emulated() -> Iterator[None]:
    """Run programs of arm64 in roots that ``LEND`` lent something, while the body runs.

    :raise RigError: When the kernel has no binfmt_misc.
    """
    with tempfile.TemporaryDirectory() as name:
        interpreter = Path(name) / "interpreter"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", interpreter, _SOURCE], check=True)
        entry = f":{_NAME}:M::{_MAGIC}:{_MASK}:{interpreter}:FP"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _REGISTER, entry]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            if holder.stdout.readline() != "registered\n":
                raise RigError("This machine's kernel cannot be told to run programs of arm64 by QEMU.")
            yield
