# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's directories for memory files: where QEMU will open its memory backends."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from virt_dmem.config import LibvirtConfig
from virt_dmem.errors import ExtentError

__all__ = ["dangling_links", "domain_directory", "is_dangling", "memory_backing_dir"]

DEFAULT_MEMORY_BACKING_DIR = "/var/lib/libvirt/qemu/ram"
_SHORT_NAME = 20
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*(["\'])(?P<path>.*?)\1', re.MULTILINE)


def memory_backing_dir(config: LibvirtConfig) -> Path:
    """Return libvirt's ``memory_backing_dir``, from its ``qemu.conf`` or libvirt's default."""
    try:
        match = _SETTING.search(Path(config.config_file).read_text("utf-8", "replace"))
    except OSError:
        match = None
    return Path(match["path"] if match else DEFAULT_MEMORY_BACKING_DIR)


def domain_directory(config: LibvirtConfig, name: str, domain_id: int | None) -> Path:
    """Return the directory that libvirt has just made for a starting domain's memory files.

    It is ``<memory_backing_dir>/libvirt/qemu/<id>-<short name>`` (``qemuGetMemoryBackingDomainPath`` in libvirt's
    ``qemu_conf.c``), the short name 20 characters at most (``virDomainDefGetShortName``), and never made by us:
    libvirt would then not label it. Where it is called otherwise it is found by its number. One left by a libvirtd
    that was killed may have the same number; libvirt makes its own anew at each start, so the youngest is the
    domain's.

    :raise ExtentError: When there is none.
    """
    backing = memory_backing_dir(config)
    for base in _bases(backing):
        path = base / f"{domain_id}-{name[:_SHORT_NAME]}"
        if path.is_dir() and not path.is_symlink():
            return path
    found = _domain_directories(backing, f"{domain_id}-")
    if domain_id is None or not found:
        raise ExtentError(
            f"libvirt made no directory {domain_id}-* for the domain's memory under {backing}.",
            hint="Look at memory_backing_dir in qemu.conf and at [libvirt] config_file in virt-dmem.toml.",
        )
    return max(found, key=lambda path: path.stat().st_ctime_ns)


def dangling_links(config: LibvirtConfig, pools_dir: Path) -> list[Path]:
    """Return the links into a pool that lead to nothing, in all of libvirt's directories for memory files."""
    return sorted(
        directory / name
        for directory in _domain_directories(memory_backing_dir(config))
        for name in _names_in(directory)
        if is_dangling(directory / name, pools_dir)
    )


def is_dangling(path: Path, pools_dir: Path) -> bool:
    """Tell whether a path is a link into a pool that leads to nothing."""
    try:
        return path.is_symlink() and pools_dir in path.readlink().parents and not path.exists()
    except FileNotFoundError:
        return False


def _domain_directories(backing: Path, start: str = "") -> list[Path]:
    """Return the directories of all domains. ``start``: only of those whose names begin so."""
    found = []
    for base in _bases(backing):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(base) as entries:
            found += [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(start) and entry.name[:1].isdecimal() and "-" in entry.name
                if entry.is_dir(follow_symlinks=False)
            ]
    return found


def _bases(backing: Path) -> tuple[Path, Path]:
    """Return where domains may have theirs: without the driver's name in libvirt's default directory."""
    return backing / "libvirt" / "qemu", backing


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 -- no path for each name: there are many, and few are wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
