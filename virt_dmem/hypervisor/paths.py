# SPDX-License-Identifier: GPL-2.0-or-later
"""Find libvirt's directories for memory files, where QEMU opens its memory backends.

They belong to QEMU's user, which may create any number of files there: see ``virt_dmem.host.dirfd``. So all scans
are bounded, and tolerate any name.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from virt_dmem.config.schema import LibvirtConfig
from virt_dmem.errors import ExtentError
from virt_dmem.host import dirfd
from virt_dmem.os_errors import remedy

__all__ = ["dangling_links", "domain_directory", "memory_backing_dir", "owner_of", "remove_dangling"]

log = logging.getLogger(__name__)

DEFINITIONS_DIR = Path("/etc/libvirt/qemu")
"""Where libvirt stores the definitions of qemu:///system, ``NAME.xml`` each."""
DEFAULT_MEMORY_BACKING_DIR = "/var/lib/libvirt/qemu/ram"
_SHORT_NAME = 20
_MOST_DIRECTORIES = 50_000
_MOST_NAMES = 4_096
"""In a domain's directory: one for each of its memory backends, of which QEMU has some hundreds."""
_MOST_SCANNED = 200_000
"""In all directories; this takes a second."""
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*(["\'])(?P<path>.*?)\1', re.MULTILINE)


def memory_backing_dir(config: LibvirtConfig) -> Path:
    """Return libvirt's ``memory_backing_dir``: from its ``qemu.conf``, else the default."""
    try:
        match = _SETTING.search(Path(config.config_file).read_text("utf-8", "replace"))
    except OSError:
        match = None
    return Path(match["path"] if match else DEFAULT_MEMORY_BACKING_DIR)


def domain_directory(config: LibvirtConfig, name: str, domain_id: int | None) -> Path:
    """Return the directory that libvirt has just created for a starting domain's memory files.

    It is ``<memory_backing_dir>/libvirt/qemu/<id>-<short name>`` (``qemuGetMemoryBackingDomainPath`` in libvirt's
    ``qemu_conf.c``), the short name 20 characters at most (``virDomainDefGetShortName``). We never create it:
    libvirt would then not label it. Under another name it is found by its id. A libvirtd that was killed may have
    left one with the same id; libvirt creates a new one at each start, so the most recent is the domain's.

    :raise ExtentError: When it does not exist.
    """
    backing = memory_backing_dir(config)
    for base in _bases(backing):
        with contextlib.suppress(OSError), dirfd.opened(base) as at:
            if _is_directory(path := f"{domain_id}-{name[:_SHORT_NAME]}", at):
                return base / path
    found = []
    for base in _bases(backing):
        with contextlib.suppress(OSError), dirfd.opened(base) as at:
            for path in _names_of_domains(base, at, f"{domain_id}-"):
                status = dirfd.status(path, at)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    found.append((status.st_ctime_ns, base / path))
    if domain_id is None or not found:
        raise ExtentError(
            f"There is no directory {domain_id}-* of libvirt for the domain's memory in {backing}.",
            hint="Check memory_backing_dir in qemu.conf, and [libvirt] config_file in virt-dmem.toml.",
        )
    return max(found)[1]


def owner_of(directory: Path) -> tuple[int, int]:
    """Return the user and group that own a domain's directory.

    :raise ExtentError: When it does not exist, or cannot be trusted to be libvirt's.
    """
    try:
        with dirfd.opened(directory) as at:
            found = os.fstat(at)
    except OSError as error:
        raise ExtentError(
            f"libvirt's directory {dirfd.shown(directory)} cannot be opened: {error.strerror}.",
            hint=remedy(error, directory) or "Start the domain again, and check who changes memory_backing_dir.",
        ) from error
    return found.st_uid, found.st_gid


def dangling_links(config: LibvirtConfig, pools_dir: Path) -> list[Path]:
    """Return the dangling links into pools, in all of libvirt's directories for memory files."""
    found: list[Path] = []
    left = _MOST_SCANNED
    backing = memory_backing_dir(config)
    for base in _bases(backing):
        with contextlib.suppress(OSError), dirfd.opened(base) as at:
            for directory in _names_of_domains(base, at):
                with contextlib.suppress(OSError), dirfd.inside(directory, at) as there:
                    names, more = dirfd.names(there, _MOST_NAMES)
                    _truncation.note(base / directory, more=more)
                    left -= len(names)
                    found += [base / directory / name for name in names if _is_dangling(name, there, pools_dir)]
                if left < 0:
                    break
    _truncation.note(backing / "…", more=left < 0)
    return sorted(found)


def remove_dangling(links: Iterable[Path], pools_dir: Path) -> list[Path]:
    """Remove those links of ``dangling_links`` that still dangle; return the removed ones."""
    gone = []
    for directory, some in itertools.groupby(links, lambda link: link.parent):
        with contextlib.suppress(OSError), dirfd.opened(directory) as at:
            for link in some:
                if dirfd.remove_link(link.name, at, lambda target: _dangles(target, pools_dir)):
                    gone.append(link)
    return gone


def _is_dangling(name: str, at: int, pools_dir: Path) -> bool:
    try:
        return _dangles(os.readlink(name, dir_fd=at), pools_dir)
    except OSError:  # not a link
        return False


def _dangles(target: str, pools_dir: Path) -> bool:
    """Return whether a path is in a pool, judged by its text only, and does not exist."""
    path = Path(target)
    if ".." in path.parts or not {pools_dir, pools_dir.resolve()} & {*path.parents}:
        return False
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


class _TruncationLog:
    """Log once for each directory that it is only scanned in part."""

    def __init__(self) -> None:
        self._logged: set[Path] = set()

    def note(self, directory: Path, *, more: bool) -> None:
        """Log if there is ``more`` than was scanned, unless that was logged."""
        if more and directory not in self._logged and len(self._logged) < _MOST_NAMES:
            self._logged.add(directory)
            log.warning("%s has more entries than libvirt creates; not all are scanned", dirfd.shown(directory))
        elif not more:
            self._logged.discard(directory)


_truncation = _TruncationLog()


def _names_of_domains(base: Path, at: int, start: str = "") -> list[str]:
    """Return the names of domains' directories in ``base``, open ``at``, that begin with ``start``.

    :raise OSError: When it cannot be read.
    """
    names, more = dirfd.names(at, _MOST_DIRECTORIES)
    _truncation.note(base, more=more)
    return [name for name in names if name.startswith(start) and name[:1].isdecimal() and "-" in name]


def _is_directory(name: str, at: int) -> bool:
    status = dirfd.status(name, at) if "/" not in name else None
    return status is not None and stat.S_ISDIR(status.st_mode)


def _bases(backing: Path) -> tuple[Path, Path]:
    """Return the directories that may hold those of domains: libvirt's default one lacks the driver's name."""
    return backing / "libvirt" / "qemu", backing
