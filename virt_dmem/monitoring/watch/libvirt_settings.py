# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the settings of libvirt's QEMU driver that pools depend on: in its file, and in force.

libvirtd reads ``qemu.conf`` when it starts; virt-dmemd when it needs it. Between a change and a restart of libvirtd
the two disagree, and after it running domains were started with other settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from virt_dmem.host.processes import started_at
from virt_dmem.hypervisor.processes import libvirt_process
from virt_dmem.monitoring.alert_codes import LIBVIRT_SETTINGS_CHANGED
from virt_dmem.monitoring.watch.base import Deviation, Sight

__all__ = ["LibvirtSettings"]

_NAMES = "memory_backing_dir|hugetlbfs_mount|user|group|dynamic_ownership|remember_owner|security_driver|namespaces"
_SETTING = re.compile(rf"^[ \t]*({_NAMES})[ \t]*=[ \t]*([^#\n]*?)[ \t]*(?:#.*)?$", re.MULTILINE)
_TOLERANCE_SECONDS = 2.0
"""Of the start of a process, in seconds since the epoch."""

_Settings = Mapping[str, str]


class LibvirtSettings:
    """Compare the settings in the file with those in force, and these with those that domains began with."""

    def __init__(self) -> None:
        self._seen: tuple[int, ...] = ()
        self._in_file: _Settings = {}
        self._process: tuple[int, int] | None = None
        self._in_force: _Settings | None = None
        """``None``: not known, as the file was changed before it was looked at."""
        self._of_domains: _Settings | None = None
        """In force when the domains that hold memory now had not yet started."""

    def __call__(self, sight: Sight) -> Iterator[Deviation]:
        """Yield a deviation if libvirtd uses other settings than its file has, or than domains began with."""
        path = sight.root / sight.config.libvirt.config_file.lstrip("/")
        changed_at = self._read(path)
        process = libvirt_process(sight.root / sight.config.libvirt.run_dir.lstrip("/"), root=sight.root)
        if process is None:  # it reads its file when it starts
            return
        if process != self._process:
            began = started_at(process[1], root=sight.root)
            self._in_force = self._in_file if changed_at <= began + _TOLERANCE_SECONDS else None
            self._process = process
        if not sight.in_use or self._of_domains is None:
            self._of_domains = self._in_force
        if self._in_force is None:
            yield _deviation(
                f"{path} was changed after libvirtd ({process[0]}) had started: it may use other settings.",
                _RESTART,
            )
        elif differences := _differences(self._in_force, self._in_file):
            yield _deviation(f"{path} was changed, and libvirtd ({process[0]}) still uses {differences}.", _RESTART)
        elif self._of_domains is not None and (differences := _differences(self._of_domains, self._in_force)):
            yield _deviation(
                "libvirtd was restarted with other settings while domains held memory of pools; these began with"
                f" {differences}.",
                "They keep running; attach no memory to them, and restart them when possible. The alert ends when"
                " no domain holds memory. 'virt-dmem check' tells if pools can be used with these settings.",
            )

    def _read(self, path: Path) -> float:
        """Read the settings again when the file changed; return when that was, in seconds since the epoch."""
        try:
            status = path.stat()
            signature = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if signature != self._seen:
                self._in_file = dict(_SETTING.findall(path.read_text("utf-8", "replace")))
                self._seen = signature
            return status.st_mtime
        except OSError:
            self._in_file, self._seen = {}, ()
            return 0.0


_RESTART = (
    "Restart libvirtd (guests keep running), or restore the file: until then starts with pool memory may fail."
)


def _deviation(message: str, hint: str) -> Deviation:
    return Deviation(LIBVIRT_SETTINGS_CHANGED, "qemu.conf", message, hint)


def _differences(before: _Settings, now: _Settings) -> str:
    """Return each setting that differs, as it was and is; empty without any."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(
        f"{name} = {before.get(name, 'its default')} instead of {now.get(name, 'its default')}" for name in names
    )
