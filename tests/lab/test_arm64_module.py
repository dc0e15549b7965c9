# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the module for arm64 and run its checks on that kernel, emulated: what of arm64 takes minutes.

The kernel boots with busybox only. ``make lab-arm64`` runs the product on a whole host.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.lab.image import NoPackages, the_root
from tests.lab.kernel_root import BAD, CHECKS, Kernel, KernelRoot

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = Kernel("trixie-backports", "arm64")
SCRIPT = f"""
uname -rm
insmod /dmemfs.ko
mount -t dmemfs -o region={KERNEL.region + (768 << 20):#x}+384M pool /mnt # beyond the RAM
mount -t dmemfs -o region=0x60000000+128M pool /mnt # the kernel's
mount -t dmemfs -o region={KERNEL.region:#x}+384M,pagesize=2M pool /mnt
dmemtest /mnt {CHECKS} && echo all of them
kvmtest /mnt
umount /mnt; rmmod dmemfs; dmesg | sed -n '/dmemfs/,$p'
"""


@pytest.fixture(scope="module")
def root() -> Iterator[KernelRoot]:
    try:
        below = the_root("trixie")
    except NoPackages as error:
        pytest.skip(str(error))
    with KernelRoot(below) as root:
        yield root


def test_it_builds_without_a_warning_and_its_checks_pass(root: KernelRoot) -> None:
    release = root.fetch(KERNEL)
    built = root.build(KERNEL, release)
    assert not re.search("(warning|error):", built, re.IGNORECASE), built
    said = root.boot(KERNEL, release, SCRIPT)
    assert f"{release} aarch64" in said, said
    assert "is not all RAM in the firmware's map: 0xc0000000 is not" in said, said
    assert "is the kernel's own memory (System RAM); reserve it by mem=SIZE" in said, said
    assert "all of them" in said, said
    assert "ok kvm" in said, said
    assert not re.search(BAD, said, re.IGNORECASE), said
