# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's directories for memory files: where QEMU will open its memory backends."""

from __future__ import annotations

import re
from pathlib import Path

from virt_dmem.config import LibvirtConfig
from virt_dmem.errors import ExtentError

__all__ = ["domain_directory", "memory_backing_dir"]

DEFAULT_MEMORY_BACKING_DIR = "/var/lib/libvirt/qemu/ram"
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*(["\'])(?P<path>.*?)\1', re.MULTILINE)


def memory_backing_dir(config: LibvirtConfig) -> Path:
    """Return libvirt's ``memory_backing_dir``, from its ``qemu.conf`` or libvirt's default."""
    try:
        match = _SETTING.search(Path(config.config_file).read_text("utf-8", "replace"))
    except OSError:
        match = None
    return Path(match["path"] if match else DEFAULT_MEMORY_BACKING_DIR)


def domain_directory(config: LibvirtConfig, domain_id: int | None) -> Path:
    """Return the directory that libvirt has just made for a starting domain's memory files.

    It is ``<memory_backing_dir>/libvirt/qemu/<id>-<short name>`` (``qemuGetMemoryBackingDomainPath`` in libvirt's
    ``qemu_conf.c``), found by its number and never made by us: libvirt would then not label it. One left by a
    libvirtd that was killed may have the same number; libvirt makes its own anew at each start, so the youngest is
    the domain's.

    :raise ExtentError: When there is none.
    """
    backing = memory_backing_dir(config)
    # with the default directory the driver's name is part of it already
    found = [
        path
        for base in (backing / "libvirt" / "qemu", backing)
        for path in base.glob(f"{domain_id}-*")
        if path.is_dir() and not path.is_symlink()
    ]
    if domain_id is None or not found:
        raise ExtentError(
            f"libvirt made no directory {domain_id}-* for the domain's memory under {backing}.",
            hint="Look at memory_backing_dir in qemu.conf and at [libvirt] config_file in virt-dmem.toml.",
        )
    return max(found, key=lambda path: path.stat().st_ctime_ns)
