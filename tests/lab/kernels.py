# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the dmemfs module for each kernel that kernel/README.md names, and run its checks there.

Each kernel boots with busybox only, so this says nothing about the product. Not part of ``make test``; ``make
module-all`` runs it. It fetches about 500 MB of packages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.lab.image import NoPackages, the_root
from tests.lab.kernel_root import BAD, CHECKS, KERNELS, Kernel, KernelRoot
from tests.rig.run_record import environment, ran_on

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = {
    Kernel("trixie", "arm64"): "takes memory without struct pages for a device's",
    Kernel("trixie-backports", "arm64-16k"): "a kernel with pages of 4 KiB",
}
ARM64 = Kernel("trixie-backports", "arm64")
USE = "dmemtest /mnt names fallocate zeroes && kvmtest /mnt"
MOUNT = "insmod /dmemfs.ko; mount -t dmemfs -o region={start:#x}+{size}M,pagesize={page} pool /mnt"


@pytest.fixture(scope="module")
def root() -> Iterator[KernelRoot]:
    try:
        below = the_root("trixie")
    except NoPackages as error:
        pytest.skip(str(error))
    with KernelRoot(below) as root:
        yield root


@pytest.fixture(scope="module")
def built(root: KernelRoot) -> dict[Kernel, str]:
    """The releases of the kernels for which it is built."""
    return {}


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_it_builds_without_a_warning(
    root: KernelRoot, built: dict[Kernel, str], kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    release = root.fetch(kernel)
    ran_on(request.node, environment("module: build", arch=kernel.arch, kernel=release))
    said = root.build(kernel, release)
    assert not re.search("(warning|error):", said, re.IGNORECASE), said
    built[kernel] = release


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel not in REFUSED], ids=str)
def test_its_checks_pass_with_small_pages_and_huge_ones(
    root: KernelRoot, built: dict[Kernel, str], kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    ran_on(request.node, environment("module: its checks", arch=kernel.arch, kernel=built[kernel]))
    script = "uname -r; insmod /dmemfs.ko\n"
    for page, size in (("4K", 64), ("2M", 384)):
        script += f"mount -t dmemfs -o region={kernel.region:#x}+{size}M,pagesize={page} pool /mnt\n"
        script += f"dmemtest /mnt {CHECKS} && echo all of {page}\n"
        script += "[ ! -e /dev/kvm ] || kvmtest /mnt; umount /mnt\n"
    said = root.boot(kernel, built[kernel], script + "rmmod dmemfs; dmesg | sed -n '/dmemfs/,$p'")
    assert built[kernel] in said
    assert "all of 4K" in said, said
    assert "all of 2M" in said, said
    assert not re.search(BAD, said, re.IGNORECASE), said
    if kernel.arch == "arm64":  # on x86 KVM is a module, and the lab's own tests run guests
        assert said.count("ok kvm") == 2, said


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.arch == "amd64"], ids=str)
def test_files_outlive_the_kernel(root: KernelRoot, built: dict[Kernel, str], kernel: Kernel) -> None:
    """The next kernel gets the token on its command line, by kexec."""
    region = f"region={kernel.region:#x}+128M:region={kernel.region + (256 << 20):#x}+128M,pagesize=2M"
    first, last = f"{1:032x}", f"{2:032x}"
    script = (
        "insmod /dmemfs.ko; mount=; grep -q token= /proc/cmdline || mount=new\n"
        f"[ $mount ] || mount=$(sed 's/.*token=//; s/ .*//' /proc/cmdline); next={first}\n"
        f"[ $mount = new ] || next={last}\n"
        f"mount -t dmemfs -o {region},persist=$mount:$next pool /mnt || exit\n"
        "if [ $mount = new ]; then\n"
        "    keeptest fill /mnt 5 && umount /mnt && rmmod dmemfs && echo filled\n"
        '    keeptest kexec /kernel /initrd "$(cat /proc/cmdline) token=$next"\n'
        "fi\n"
        "keeptest verify /mnt 5 && keeptest clean /mnt && keeptest verify /mnt 5 && echo all of it\n"
        "umount /mnt; rmmod dmemfs; dmesg | sed -n '/dmemfs/,$p'\n"
    )
    said = root.boot(kernel, built[kernel], script, with_kernel=True)
    assert "filled" in said, said
    assert "all of it" in said, said
    assert not re.search(BAD, said, re.IGNORECASE), said


@pytest.mark.parametrize("kernel", REFUSED, ids=str)
def test_a_mount_is_refused_where_a_guest_would_come_to_harm(
    root: KernelRoot, built: dict[Kernel, str], kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    ran_on(request.node, environment("module: refuses to mount", arch=kernel.arch, kernel=built[kernel]))
    said = root.boot(
        kernel, built[kernel], MOUNT.format(start=kernel.region, size=128, page="2M") + "; echo was $?"
    )
    assert "was 0" not in said, said
    assert "not supported on this host" in said, said
    assert REFUSED[kernel] in said, said


def test_a_mount_is_refused_where_the_cpu_cannot(root: KernelRoot, built: dict[Kernel, str]) -> None:
    script = MOUNT.format(start=ARM64.region, size=128, page="2M")
    assert "KVM needs FEAT_S2FWB" in root.boot(ARM64, built[ARM64], script, cpu="neoverse-n1")


def test_regions_are_compared_to_the_device_tree(root: KernelRoot, built: dict[Kernel, str]) -> None:
    script = "insmod /dmemfs.ko; cat /sys/fs/dmemfs/firmware_ram; "
    script += "for at in 0x60000000 0xb8000000 0x8000000; do mount -t dmemfs -o region=$at+256M pool /mnt; done"
    said = root.boot(ARM64, built[ARM64], script)
    assert "0x40000000+0x80000000" in said
    assert "0x60000000+0x10000000 is the kernel's own memory (System RAM); reserve it by mem=SIZE" in said
    assert "0xb8000000+0x10000000 is not all RAM in the firmware's map: 0xc0000000 is not" in said
    assert "0x8000000+0x10000000 is not all RAM in the firmware's map: 0x8000000 is not" in said


def test_with_uefi_the_ram_is_what_uefi_leaves_free(root: KernelRoot, built: dict[Kernel, str]) -> None:
    """EDK2 and the kernel's stub have their things near the end of RAM, in the last section of 128 MiB here."""
    script = "insmod /dmemfs.ko; cat /sys/fs/dmemfs/firmware_ram; echo end of ram\n"
    script += "mount -t dmemfs -o region=0xb8000000+128M pool /mnt\n"
    script += f"mount -t dmemfs -o region={ARM64.region:#x}+512M,pagesize=2M pool /mnt && {USE} && echo all of it"
    said = root.boot(ARM64, built[ARM64], script, uefi=True)
    ranges = re.findall(r"(0x\w+)\+(0x\w+)", said.partition("end of ram")[0])
    ends = [int(start, 16) + int(size, 16) for start, size in ranges]
    assert ranges[0][0] == "0x40000000", said
    assert ARM64.region + (512 << 20) <= ends[0] < 0xC0000000, said
    assert len(ranges) > 1, said
    assert "0xb8000000+0x8000000 is the kernel's own memory" in said, said
    assert "all of it" in said, said


def test_linux_usable_memory_range_withholds_any_two_ranges(root: KernelRoot, built: dict[Kernel, str]) -> None:
    script = f"{MOUNT.format(start=0x60000000, size=512, page='2M')} && {USE} && echo all of it\n"
    script += "umount /mnt; mount -t dmemfs -o region=0xa0000000+512M,pagesize=2M pool /mnt && echo that too\n"
    script += "cat /proc/vmstat"
    said = root.boot(ARM64, built[ARM64], script, usable=[(start, 512 << 20) for start in (0x40000000, 0x80000000)])
    assert "all of it" in said, said
    assert "that too" in said, said
    assert "nr_memmap_boot_pages 4096" in said, said  # of 8192
