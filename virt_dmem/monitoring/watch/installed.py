# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch what virt-dmem installed for libvirt, AppArmor and systemd: guests do not start without it, or wrongly.

The installer's manifest has a digest of each such file (packaging/install.sh). Where nothing was installed, as in a
checkout, the hook and its program are compared with what they were when they were first seen.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import virt_dmem
from virt_dmem.host.confinement import apparmor
from virt_dmem.monitoring.alert_codes import INSTALLATION_CHANGED
from virt_dmem.monitoring.checks.base import INSTALL, text_of
from virt_dmem.monitoring.watch.base import Deviation, Sight

__all__ = ["HOOK", "MANIFEST", "InstalledFiles"]

MANIFEST = Path(virt_dmem.__file__).parents[2] / "manifest"
"""Beside the directory of the package, where it is installed."""
HOOK = Path("/etc/libvirt/hooks/qemu.d/50-virt-dmem")
_UNRECORDED = (
    HOOK,
    HOOK.parents[1] / "virt-dmem-hook",
    Path("/usr/bin/virt-dmem-hook"),
    apparmor.RULES / "abstractions/libvirt-qemu.d/virt-dmem",
)
_MEANING = {
    "/hooks/": "domains that start get no memory from pools",
    "virt-dmem-hook": "domains with pool memory cannot start",
    "/apparmor.d/": "QEMU may not reach the memory of its domain at its next start",
    "/systemd/": "it is in force at the next start of the unit, or boot",
}
"""What a change means, by a part of the path; the last that fits counts."""
_ABOVE = (Path("/etc/systemd/system"), Path("/run/systemd/system"))
"""Where systemd looks for a unit before it looks where ours are (systemd.unit(5))."""

_Signature = tuple[int, ...]


class InstalledFiles:
    """Compare files with their digests; a file is read again only when its status changed."""

    def __init__(self, manifest: Path = MANIFEST) -> None:
        self._manifest = manifest
        self._manifest_seen: _Signature | None = None
        self._expected: dict[Path, str] = {}
        self._lines: dict[Path, str] = {}
        """A line that was added to somebody else's file."""
        self._read: dict[Path, tuple[_Signature, str]] = {}

    def __call__(self, sight: Sight) -> Iterator[Deviation]:
        """Yield each file that is gone, was changed, or cannot be executed any more, and units that are masked."""
        self._read_manifest()
        for path in self._expected if self._manifest_seen else _UNRECORDED:
            fault = self._fault(path, sight.root / str(path).lstrip("/"))
            if fault:
                meaning = [text for part, text in _MEANING.items() if part in str(path)]
                message = f"{path} {fault}{f': {meaning[-1]}' if meaning else ''}."
                yield Deviation(INSTALLATION_CHANGED, str(path), message, INSTALL)

            if "/systemd/system/" in str(path):
                yield from _overridden(path, sight.root)

        for path, line in self._lines.items():
            if line not in text_of(sight.root / str(path).lstrip("/")).splitlines():
                message = f"{path} has no line '{line}' any more: {_MEANING['/apparmor.d/']}."
                yield Deviation(INSTALLATION_CHANGED, str(path), message, INSTALL)

    def _fault(self, path: Path, file: Path) -> str:
        try:
            status = file.stat()
            found = self._digest(path, file, status)
        except OSError:
            return "is gone" if path in self._expected else ""
        expected = self._expected.setdefault(path, found)
        if found != expected:
            return "is not as it was installed" if self._manifest_seen else "was changed since virt-dmemd started"
        executable = path.parent.name in ("qemu.d", "bin", "sbin") or path.name == "virt-dmem-hook"
        if executable and not status.st_mode & stat.S_IXUSR:
            return "cannot be executed any more"
        return ""

    def _digest(self, path: Path, file: Path, status: os.stat_result) -> str:
        signature = _signature(status)
        if path not in self._read or self._read[path][0] != signature:
            self._read[path] = signature, hashlib.sha256(file.read_bytes()).hexdigest()
        return self._read[path][1]

    def _read_manifest(self) -> None:
        """Read the digests again when another version was installed."""
        try:
            signature = _signature(self._manifest.stat())
            if signature != self._manifest_seen:
                lines = [line.split(" ", 2) for line in self._manifest.read_text("utf-8", "replace").splitlines()]
                self._expected = {Path(line[2]): line[1] for line in lines if line[0] == "H" and len(line) == 3}
                self._lines = {Path(line[1]): line[2] for line in lines if line[0] == "L" and len(line) == 3}
                self._manifest_seen = signature
        except OSError:
            self._manifest_seen, self._lines = None, {}


def _overridden(unit: Path, root: Path) -> Iterator[Deviation]:
    """Yield what systemd loads instead of a unit: nothing, where it is masked, or another file of its name."""
    for directory in _ABOVE:
        other = root / str(directory / unit.name).lstrip("/")
        if not os.path.lexists(other) or other.resolve() == (root / str(unit).lstrip("/")).resolve():
            continue
        masked = other.resolve() == Path("/dev/null")
        what = "is masked by" if masked else "is not used, but"
        message = f"{unit} {what} {directory / unit.name}: {_MEANING['/systemd/']}."
        undo = f"Run 'systemctl unmask {unit.name}'."
        if not masked:
            undo = f"Remove {directory / unit.name}, or write a drop-in."
        yield Deviation(INSTALLATION_CHANGED, str(unit), message, undo)


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
