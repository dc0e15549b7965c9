# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the root of a Debian host on which all is installed that the packages depend on, but not they."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.image import missing_for_lab
from tests.rig.processes import RigError
from tests.rig.repository import REPOSITORY

__all__ = ["APT_REPOSITORY", "OTHER_KERNEL", "PACKAGES", "dependencies", "host_root"]

PACKAGES = REPOSITORY / "build/packages"
APT_REPOSITORY = REPOSITORY / "build/repository"
_CACHE = REPOSITORY / ".cache/packages"
_INCLUDED = (
    "systemd,systemd-sysv,dbus,kmod,passwd,procps,qemu-system-x86,make,gcc,linux-headers-amd64,initramfs-tools,"
    "python3-apt"
)
"""What a host has, what DKMS and Ansible's module for apt need, and QEMU."""
OTHER_KERNEL = "/var/cache/other-kernel"
"""The directory, on that host, of the packages of a kernel that its release has besides the one it has."""
_OTHER_KERNEL = f"""chroot "$1" /bin/sh -ec '
release=$(apt-cache pkgnames linux-headers- | sed -nE "s/^linux-headers-([0-9][^-]*(-[0-9]+)?-amd64)$/\\1/p" |
    while read -r name; do [ -d /usr/src/linux-headers-$name ] || echo $name; done | sort -V | tail -n 1)
mkdir -p {OTHER_KERNEL}/partial
apt-get -qq -y --no-install-recommends -o Dir::Cache::archives={OTHER_KERNEL} --download-only install \
    linux-image-$release linux-headers-$release >/dev/null'"""
_NO_INITRAMFS = (
    'mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"'
)
"""Nothing boots from one here, and to build it takes as long as the rest."""
_SATISFY = (
    'DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get -qq -y --no-install-recommends satisfy "{}" >/dev/null'
)


def host_root(release: str, more: Sequence[str] = (), *, name: str = "host") -> Path:
    """Return the root of Debian ``release``, from the cache or newly made, which needs the network.

    :param more: Packages that this host has besides.
    :param name: What it is called in the cache, which keeps one root of each name.
    ``PACKAGES_ROOT``, if it is set, is taken instead.

    :raise RigError: When there are no packages yet, or it cannot be made.
    """
    if reason := missing_for_lab():
        raise RigError(f"This {reason}.")
    if shared := os.environ.get("PACKAGES_ROOT"):
        return Path(shared)
    needed = ", ".join(_needed(release))
    included = ",".join((_INCLUDED, *more))
    key = hashlib.sha256(f"{included} {needed} {_OTHER_KERNEL}".encode()).hexdigest()[:16]
    root = _CACHE / f"{name}-{release}-{key}"
    if not root.exists():
        making = _CACHE / f"making-{name}-{release}"
        for old in (making, *_CACHE.glob(f"{name}-{release}-*")):
            shutil.rmtree(old, ignore_errors=True)
        command = ["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet", f"--include={included}"]
        command += ["--aptopt=APT::Install-Recommends false"]
        command += [f"--essential-hook={_NO_INITRAMFS}", "--dpkgopt=force-confold"]
        command += [f"--customize-hook={_SATISFY.format(needed)}", f"--customize-hook={_OTHER_KERNEL}"]
        command += [
            '--customize-hook=rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*',
            release,
            str(making),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RigError(f"The root of {release} cannot be made:\n{done.stderr}")
        making.rename(root)
    return root


def dependencies(release: str) -> list[str]:
    """Return the names of all packages that those for ``release`` depend on.

    :raise RigError: When there are none for it yet.
    """
    return [one.partition(" ")[0].removesuffix(":any") for one in _needed(release)]


def _needed(release: str) -> list[str]:
    found = [
        package for package in sorted((PACKAGES / release).glob("*virt-dmem*.deb")) if "dbgsym" not in package.name
    ]
    if not found:
        raise RigError(f"There are no packages for {release} yet: make deb")
    all_needed = [one for package in found for one in _depends(package).split(", ")]
    return [one for one in all_needed if one and not one.startswith("virt-dmem ")]


def _depends(package: Path) -> str:
    return subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout.strip()
