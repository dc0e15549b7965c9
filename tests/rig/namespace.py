# SPDX-License-Identifier: GPL-2.0-or-later
"""Enter a private mount namespace, with empty directories in place of those of libvirt and virt-dmem."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from tests.rig.keeper import start_keeper
from tests.rig.private_mounts import leave_mount_namespace
from tests.rig.processes import PID_DIR, RigError

__all__ = ["KVM", "enter_private_namespace", "missing_for_rig", "mount_points_below", "require_private_namespace"]

KVM = "VIRT_DMEM_TEST_KVM" in os.environ
"""If set, guests run under KVM, which this machine must have; else under TCG, on every machine alike."""
_PROGRAMS = ("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64")
_PRIVATE = {
    "/etc/libvirt": "0755",
    "/etc/virt-dmem": "0755",
    "/run/libvirt": "0755",
    "/run/virt-dmem": "0755",
    str(PID_DIR): "0700",
    "/var/lib/libvirt": "0755",
    "/var/lib/virt-dmem": "0700",
    "/var/cache/libvirt": "0711",
    "/var/log/libvirt": "0755",
}
_MASKED = ("/run/dbus", "/run/systemd/private")
"""Without these libvirtd does not register its guests with the host's systemd-machined."""

_entered = False


def missing_for_rig() -> str:
    """Return why the rig cannot work here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in _PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return f"needs {', '.join(missing)}; 'make setup' installs them" if missing else ""


def require_private_namespace() -> None:
    """Verify that the directories are private.

    :raise RigError: When they are the host's.
    """
    if Path("/etc/libvirt").stat().st_dev == Path("/etc").stat().st_dev:
        raise RigError("This is the host's /etc/libvirt: call enter_private_namespace() first.")


def _mount(*args: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"mount {' '.join(map(str, args))}: {done.stderr.strip()}")


def mount_points_below(directory: Path) -> list[str]:
    """Return the mount points below ``directory``, outermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{directory}/")]


def _overlay(directory: Path, scratch: Path) -> None:
    """Make ``directory`` writable for this namespace only, so that a mount point can be created in it.

    Mounts below it (in containers /etc/resolv.conf) remain visible.
    """
    below = mount_points_below(directory)
    old, upper, work = (scratch / directory.name / part for part in ("old", "upper", "work"))
    for path in (old, upper, work):
        path.mkdir(parents=True)
    _mount("--rbind", directory, old)
    options = f"lowerdir={directory},upperdir={upper},workdir={work}"
    _mount("-t", "overlay", "-o", options, "overlay", directory)
    for mount in below:
        try:
            _mount("--rbind", old / Path(mount).relative_to(directory), mount)
        except RigError:
            if Path(mount).exists():  # else its owner has unmounted it and removed the directory meanwhile
                raise


def enter_private_namespace(*, kvm: bool = KVM) -> None:
    """Move this process, and thus all its future children, into a private mount namespace.

    To be called once, before threads are started; a second call does nothing. Without ``kvm`` only root
    can open /dev/kvm: all guests run under TCG, on every machine alike. When the caller ends, even by
    SIGKILL, the keeper ends the remaining QEMUs and daemons.

    :raise RigError: When this is not root, or a mount fails.
    """
    global _entered  # noqa: PLW0603 - a process is in one namespace
    if _entered:
        return
    try:
        leave_mount_namespace()
    except OSError as error:
        raise RigError(f"No mount namespace of our own: {error.strerror}.") from error
    _entered = True
    scratch = Path(tempfile.mkdtemp(prefix="virt-dmem-rig-"))
    _mount("-t", "tmpfs", "-o", "mode=0700", "virt-dmem-rig", scratch)
    for name, mode in _PRIVATE.items():
        path = Path(name)
        if not path.exists():
            if not (scratch / path.parent.name).exists():
                _overlay(path.parent, scratch)
            path.mkdir()
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "virt-dmem-rig", path)
    subprocess.run(["umount", "--lazy", str(scratch)], check=True)  # the overlays hold what they need of it
    scratch.rmdir()
    for path in map(Path, _MASKED):
        if path.is_dir():
            _mount("-t", "tmpfs", "virt-dmem-rig", path)
        elif path.exists():
            _mount("--bind", "/dev/null", path)
    if not kvm and Path("/dev/kvm").exists():
        _hide_kvm()
    start_keeper()


def _hide_kvm() -> None:
    """Mount a device over /dev/kvm that libvirt's user may not open.

    /dev/null itself would not do: libvirt 9.0 (virQEMUCapsIsValid) sees that it can be opened, finds that QEMU
    was probed without KVM, and probes anew for every query, 20 s for each start.
    """
    closed = PID_DIR / "no-kvm"
    os.mknod(closed, stat.S_IFCHR, os.makedev(1, 3))
    _mount("--bind", closed, "/dev/kvm")
