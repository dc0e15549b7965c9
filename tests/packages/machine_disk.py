# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the disk of a host that boots in QEMU, with the packages' repository and all that they depend on."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.image import Image, the_root, the_root_with
from tests.packages.host_root import APT_REPOSITORY, dependencies
from tests.rig.processes import RigError

__all__ = ["REPOSITORY_ARCHIVE", "machine_image"]

REPOSITORY_ARCHIVE = "/root/repository.tar"
"""On that disk: the packages' repository, with absolute paths: of a directory that may be emptied at boot."""

_MAKE = """
set -e
mount -t tmpfs layer "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$0,upperdir=$2/upper,workdir=$2/work,metacopy=on,xino=on" root "$2/root"
tar -cPf "$2/root$5" "$1"
# the lab leaves out documents, and reads its packages from a mirror, which this host cannot reach
rm -f "$2"/root/etc/dpkg/dpkg.cfg.d/* "$2"/root/etc/apt/sources.list "$2"/root/etc/apt/sources.list.d/*
rm -rf "$2"/root/var/lib/apt/lists/*
chroot "$2/root" /bin/sh -ec "$4"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$2/root" "$3" 6G
"""


def machine_image(release: str, directory: Path, more: Sequence[str] = (), script: str = "") -> Image:
    """Return the image of a host with Debian ``release``; its disk is made in ``directory``.

    :param more: Packages that this host has besides.
    :param script: Shell commands that change its root first.
    :raise RigError: When it cannot be made.
    """
    root = the_root_with(release, {*dependencies(release), *more})
    layer, disk = directory / "layer", directory / "disk"
    layer.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MAKE]
    command += [root, APT_REPOSITORY, layer, disk, script, REPOSITORY_ARCHIVE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"The disk of {release} cannot be made:\n{done.stdout}{done.stderr}")
    base = root.parent
    return Image(release, disk, base / "kernel", base / "initrd", root, the_root("trixie"))
