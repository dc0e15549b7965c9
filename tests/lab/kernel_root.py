# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the dmemfs module for kernels of several Debian releases and architectures, and boot them with busybox.

All in one root: the lab's Debian 13, in a layer above it that has a cross compiler, the headers and images of these
kernels, and QEMU for both architectures.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.lab.overlay_root import OverlayRoot

__all__ = ["BAD", "CHECKS", "KERNELS", "Kernel", "KernelRoot"]

CHECKS = (
    "names sizes fallocate statfs nodes entries private splits protect access reader gup walkers leases exhaustion "
    "held pieces zeroes threads storm"
)
BAD = r"BUG:|Oops|[Bb]ad (page|p[um]d|rss)|lockdep|possible (circular|recursive)|blocked for more than|call trace:"

_SOURCE = Path(__file__).parents[2] / "kernel"
_SIZE = "8g"
_OTHERS = ("bookworm", "trixie-backports")
_PREPARE = f"""
dpkg --add-architecture arm64
mirror=$(sed -n 's/^deb .*\\(http[^ ]*\\) trixie main.*/\\1/p' /etc/apt/sources.list | head -n 1)
for suite in {" ".join(_OTHERS)}; do echo "deb $mirror $suite main"; done >/etc/apt/sources.list.d/kernels.list
apt-get -qq -o Acquire::Retries=5 -o APT::Update::Error-Mode=any update
apt-get -qq install --no-install-recommends busybox-static cpio gcc-12 gcc-14 gcc-14-aarch64-linux-gnu \\
    libc6-dev-arm64-cross device-tree-compiler make perl qemu-efi-aarch64 qemu-system-arm qemu-system-x86
mkdir /debs && cd /debs
apt-get -qq download busybox-static:arm64
dpkg --fsys-tarfile busybox-static_*arm64.deb | tar -x -C /debs
"""
_OF_KERNELS = re.compile(r"linux-(headers|kbuild|image|binary|base)-\d")
_COMPILERS = {"amd64": "gcc-14", "arm64": "aarch64-linux-gnu-gcc-14"}
_BUSYBOX = {"amd64": "/usr/bin/busybox", "arm64": "/debs/usr/bin/busybox"}
_MACHINES = {
    "amd64": "qemu-system-x86_64 -M pc -cpu max",
    "arm64": "qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -cpu {cpu}",
}
_CMDLINES = {"amd64": "console=ttyS0 memmap=512M$0x40000000", "arm64": "console=ttyAMA0 mem=1G"}
_ANOTHER = "cp $linux kernel; cp /initrd .; find . | cpio --quiet -o -H newc | gzip -1 >/initrd\n"
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs tmp /var/tmp
sh /script 2>&1
poweroff -f
"""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of Debian: the newest ``flavour`` of ``suite``."""

    suite: str
    flavour: str

    @property
    def arch(self) -> str:
        """Return Debian's name of its architecture."""
        return self.flavour.partition("-")[0]

    @property
    def region(self) -> int:
        """Return where the 512 MiB start that it does not know when it is booted here."""
        return 0x80000000 if self.arch == "arm64" else 0x40000000

    def __str__(self) -> str:
        return f"{self.suite}-{self.flavour}"


KERNELS = [
    Kernel("bookworm", "amd64"),
    Kernel("trixie", "amd64"),
    Kernel("trixie-backports", "amd64"),
    Kernel("trixie", "arm64"),
    Kernel("trixie-backports", "arm64"),
    Kernel("trixie-backports", "arm64-16k"),
]


class KernelRoot(OverlayRoot):
    """A Debian 13 in which kernels can be fetched, the module be built for them, and they be booted with it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, size=_SIZE)
        self.run(_PREPARE)

    def fetch(self, kernel: Kernel) -> str:
        """Unpack the headers and the image of ``kernel``; return its release, as ``uname -r`` prints it."""
        depends = self._depends(kernel.suite, kernel.arch)
        wanted: list[str] = []
        following = [f"linux-headers-{kernel.flavour}", f"linux-image-{kernel.flavour}"]
        while following:
            name = following.pop()
            following += [other for other in depends.get(name, []) if other not in wanted]
            if _OF_KERNELS.match(name):
                wanted.append(name)
        files = " ".join(dict.fromkeys(self._of_arch(name, kernel.arch) for name in wanted))
        self.run(
            f"rm -rf /debs/new && mkdir /debs/new && cd /debs/new && apt-get -qq download {files}\n"
            "for deb in *.deb; do\n"
            "    dpkg --fsys-tarfile $deb |\n"
            "        tar -x --keep-directory-symlink -C / --exclude=*.ko.xz --exclude=*/dtb/*\n"
            "done"
        )
        (headers,) = {name for name in wanted if name.startswith("linux-headers-") and not name.endswith("-common")}
        return headers.removeprefix("linux-headers-")

    def _depends(self, suite: str, arch: str) -> dict[str, list[str]]:
        """Return the first alternative of each dependency of each package of that release."""
        lists = f"/var/lib/apt/lists/*_dists_{suite}_main_binary-{arch}_Packages*"
        found = {}
        for stanza in self.run(f"/usr/lib/apt/apt-helper cat-file {lists}").split("\n\n"):
            fields = dict(re.findall(r"^(Package|Depends): (.*)$", stanza, re.MULTILINE))
            if fields.get("Package", "").startswith("linux-"):
                found[fields["Package"]] = re.findall(r"(?:^|, )([^ ,(|]+)", fields.get("Depends", ""))
        return found

    @staticmethod
    def _of_arch(name: str, arch: str) -> str:
        """Return the name to download: what compiles runs here, and the common headers are of no architecture."""
        if name.startswith("linux-kbuild-") or name.endswith("-common"):
            return name
        return f"{name}:{arch}"

    def build(self, kernel: Kernel, release: str) -> str:
        """Build the module and its programs in /build/RELEASE; return what make and the compilers print."""
        target = self.directory / "build" / release
        shutil.copytree(_SOURCE, target, ignore=shutil.ignore_patterns("*.o", "*.ko", ".*.cmd", "*.mod*"))
        for program in ("dmemtest", "vfiotest", "kvmtest", "keeptest"):
            (target / "tests" / program).unlink(missing_ok=True)
        flags = "-O2 -Wall -Wextra -Werror -static"
        return self.run(
            f"make -C /build/{release} W=1 KDIR=/usr/src/linux-headers-{release} modules\n"
            f"make -C /build/{release}/tests CC={_COMPILERS[kernel.arch]} CFLAGS='{flags}'\n"
        )

    def boot(
        self,
        kernel: Kernel,
        release: str,
        script: str,
        *,
        cpu: str = "max,pauth-impdef=on",
        with_kernel: bool = False,
        uefi: bool = False,
        usable: Sequence[tuple[int, int]] = (),
    ) -> str:
        """Boot the built module's kernel; run a shell script there as root; return the console's output.

        :param with_kernel: The script finds the same kernel as /kernel and an initramfs as /initrd, for kexec.
        :param uefi: On arm64 EDK2 boots it, not QEMU by the device tree alone.
        :param usable: On arm64 start and size of each ``linux,usable-memory-range``, instead of ``mem=``.
        """
        tree = self.directory / "boot-tree"
        shutil.rmtree(tree, ignore_errors=True)
        for name in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "mnt"):
            (tree / name).mkdir(parents=True)
        (tree / "init").write_text(_INIT)
        (tree / "init").chmod(0o755)
        (tree / "script").write_text(script)
        tests = f"/build/{release}/tests"
        machine = f"{_MACHINES[kernel.arch].format(cpu=cpu)} -smp 2 -m 2G"
        cmdline, prepare = _CMDLINES[kernel.arch], ""
        if uefi:
            machine += " -bios /usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
        if usable:
            cmdline = cmdline.replace("mem=1G", "")
            cells = " ".join(f"{number >> 32:#x} {number & 0xFFFFFFFF:#x}" for pair in usable for number in pair)
            prepare = f"{machine.replace(' -M virt', ' -M virt,dumpdtb=/dtb')} -display none\n"
            prepare += f"fdtput -t x /dtb /chosen linux,usable-memory-range {cells}\n"
            machine += " -dtb /dtb"
        return self.run(
            f"{prepare}"
            f"cd /boot-tree; cp {_BUSYBOX[kernel.arch]} {tests}/dmemtest {tests}/kvmtest {tests}/keeptest bin\n"
            f"cp /build/{release}/dmemfs.ko .\n"
            "find . | cpio --quiet -o -H newc | gzip -1 >/initrd\n"
            f"linux=/usr/lib/modules/{release}/vmlinuz; [ -e $linux ] || linux=/boot/vmlinuz-{release}\n"
            f"{_ANOTHER if with_kernel else ''}"
            f"timeout 1500 {machine} -accel tcg,thread=multi -nodefaults -display none -no-reboot"
            f" -serial stdio -kernel $linux -initrd /initrd -append '{cmdline} quiet panic=-1'\n"
        )
