# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe the architectures of the lab's hosts: this machine's, and arm64, which QEMU emulates."""

from __future__ import annotations

import dataclasses

__all__ = ["AMD64", "ARM64", "Architecture"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What differs from one to another when a host is built and booted."""

    name: str
    """Debian's name of it."""
    setup: str
    """The command that prepares the project's directory there."""
    packages: str
    """Beside those of every host."""
    modules: str
    """Of its kernel, to be loaded at boot."""
    emulator: str
    """QEMU's program."""
    machine: str
    cpu: str
    console: str
    boot_seconds: int
    """How long it may take to boot."""

    @property
    def is_foreign(self) -> bool:
        """Return whether this machine's kernel runs its programs by QEMU's user emulation only."""
        return self.name != "amd64"


AMD64 = Architecture(
    "amd64",
    setup="make --silent setup",
    packages="linux-image-amd64 linux-headers-amd64",
    # else udev loads it later, and a libvirtd that was started before never looks for /dev/kvm again
    modules="kvm_amd\n",
    emulator="qemu-system-x86_64",
    machine="pc",
    # all features but string instructions, which TCG runs bytewise: the kernel zeroes 1.5 times as fast without
    cpu="max,-erms,-fsrm",
    console="ttyS0",
    boot_seconds=75,  # an idle machine of 2 cores takes 20
)
ARM64 = Architecture(
    "arm64",
    setup="packaging/setup.sh install\n.venv/bin/python -m virt_dmem.native.build",
    # with initramfs-tools, else the kernel takes dracut, which makes an initramfs in any case
    packages="""
        linux-image-arm64 linux-headers-arm64 initramfs-tools busybox-static qemu-system-arm qemu-efi-aarch64
        libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system
    """,
    modules="",
    emulator="qemu-system-aarch64",
    machine="virt,virtualization=on,gic-version=3",
    cpu="max,pauth-impdef=on",  # pointers signed as the architecture says take half of TCG's time
    console="ttyAMA0",
    boot_seconds=300,
)
