# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a bootable guest: Debian's cloud kernel and an initramfs with busybox, without installing anything.

``python -m tests.rig.guest`` only fetches the kernel, so that later runs need no network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.namespace import require_private_namespace
from tests.rig.processes import RigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GuestImage", "fetch_kernel", "guest_image", "make_initramfs"]

_CACHE = Path(__file__).parents[2] / ".cache/guest"
_BOOT = Path("/var/lib/libvirt/boot")
"""Readable by QEMU's user, wherever the checkout is."""

_METAPACKAGE = "linux-image-cloud-amd64"
_BUSYBOX = Path("/bin/busybox")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=100% tmp /tmp
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
echo "virt-dmem guest up"
grep MemTotal: /proc/meminfo
echo "cmdline: $(cat /proc/cmdline)"
[ -e /script ] && . /script
while :; do
    echo "uptime: $(cut -d' ' -f1 /proc/uptime)"
    sleep 1
done
"""


@dataclasses.dataclass(frozen=True)
class GuestImage:
    """The image that ``domain_xml(image=…)`` boots."""

    kernel: Path
    initrd: Path


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise RigError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def fetch_kernel() -> Path:
    """Return the directory of an unpacked kernel package, from the cache or by ``apt-get download``.

    :raise RigError: When it is in neither; with apt-get's message.
    """
    unpacked = _CACHE / "kernel"
    if unpacked.exists():
        return unpacked
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as name:
        scratch = Path(name)
        try:
            _download(scratch)
        except RigError:  # the lists are older than the archive
            _run("apt-get", "-q", "update")
            _download(scratch)
        for package in scratch.glob("*.deb"):
            _run("dpkg-deb", "-x", package, scratch / "root")
        _provide_in_boot(scratch / "root")
        with contextlib.suppress(OSError):  # another process was first
            (scratch / "root").rename(unpacked)
    return unpacked


def _download(directory: Path) -> None:
    # apt's own sandbox user may not write here; as root is fine, the package is checked against the signed list
    found = re.search(r"Depends: (linux-image-(\S+))", _run("apt-cache", "depends", _METAPACKAGE))
    if found is None:
        raise RigError(f"apt knows no package that {_METAPACKAGE} depends on.")
    # since 7.x the image's package is empty, and depends on these
    parts = rf"Depends: (linux-(?:base|binary|modules)-{re.escape(found[2])})$"
    names = [found[1], *re.findall(parts, _run("apt-cache", "depends", found[1]), re.MULTILINE)]
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names, cwd=directory)


def _provide_in_boot(root: Path) -> None:
    """Link the kernel to where it is in older packages."""
    for kernel in root.glob("usr/lib/modules/*/vmlinuz"):
        (root / "boot").mkdir(exist_ok=True)
        (root / f"boot/vmlinuz-{kernel.parent.name}").hardlink_to(kernel)


def _is_built_in(kernel: Path, name: str) -> bool:
    lists = kernel.glob("**/modules.builtin")
    return any(Path(line).stem == name for file in lists for line in file.read_text("utf-8").splitlines())


def _module(kernel: Path, name: str) -> bytes:
    for file in kernel.glob(f"**/{name}.ko*"):
        if file.suffix == ".xz":
            return lzma.decompress(file.read_bytes())
        return file.read_bytes()
    raise RigError(f"The guest's kernel has no module {name}.")


def make_initramfs(
    kernel: Path, script: str = "", modules: Sequence[str] = (), *, busybox: Path = _BUSYBOX
) -> bytes:
    """Return the initramfs that ``guest_image`` describes, with modules of the unpacked package ``kernel``."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "bin").mkdir()
        (root / "modules").mkdir()
        shutil.copy(busybox, root / "bin/busybox")
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        if script:
            (root / "script").write_text(script)
        for number, module in enumerate(name for name in modules if not _is_built_in(kernel, name)):
            (root / f"modules/{number:02}-{module}.ko").write_bytes(_module(kernel, module))
        listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        archive = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
        return subprocess.run(archive, input=listing.encode(), stdout=subprocess.PIPE, check=True, cwd=root).stdout


def guest_image(script: str = "", *, modules: Sequence[str] = ()) -> GuestImage:
    """Return a kernel and an initramfs in the private namespace's /var/lib/libvirt/boot.

    On the serial console the guest prints ``virt-dmem guest up``, its ``MemTotal:`` line, ``cmdline: …``, then
    runs ``script`` (busybox sh), then prints ``uptime: …`` every second. ``modules`` are loaded first, in order
    (virtio_mem and virtio_balloon are modules).

    :raise RigError: When the kernel is not available or busybox-static is missing.
    """
    require_private_namespace()
    if not _BUSYBOX.exists():
        raise RigError("There is no /bin/busybox; 'make setup' installs busybox-static.")
    kernel = fetch_kernel()
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    _BOOT.mkdir(mode=0o711, exist_ok=True)
    image = GuestImage(_BOOT / vmlinuz.name, Path(tempfile.mkstemp(prefix="initrd-", dir=_BOOT)[1]))
    if not image.kernel.exists():
        shutil.copyfile(vmlinuz, image.kernel)
    image.initrd.write_bytes(make_initramfs(kernel, script, modules))
    for file in (image.kernel, image.initrd):
        file.chmod(0o644)
    return image


if __name__ == "__main__":
    try:
        fetch_kernel()
    except RigError as error:
        sys.exit(str(error))
