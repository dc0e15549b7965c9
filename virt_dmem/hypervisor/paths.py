# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's directories for memory files: where QEMU will open its memory backends.

They are its user's, who may put there whatever and however much it likes: see ``virt_dmem.host.dirfd``. What is
looked at is bounded, and no name there stops anything.
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

__all__ = ["dangling_links", "domain_directory", "memory_backing_dir", "owner_of", "remove_dangling"]

log = logging.getLogger(__name__)

DEFAULT_MEMORY_BACKING_DIR = "/var/lib/libvirt/qemu/ram"
_SHORT_NAME = 20
_MOST_DIRECTORIES = 50_000
_MOST_NAMES = 4_096
"""In a domain's directory: one for each of its memory backends, of which QEMU has some hundreds."""
_MOST_LOOKED_AT = 200_000
"""In all; a second's work."""
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
            f"libvirt made no directory {domain_id}-* for the domain's memory under {backing}.",
            hint="Look at memory_backing_dir in qemu.conf and at [libvirt] config_file in virt-dmem.toml.",
        )
    return max(found)[1]


def owner_of(directory: Path) -> tuple[int, int]:
    """Return the user and group that a domain's directory belongs to.

    :raise ExtentError: When it is gone, or is no directory that can be trusted to be libvirt's.
    """
    try:
        with dirfd.opened(directory) as at:
            found = os.fstat(at)
    except OSError as error:
        raise ExtentError(
            f"libvirt's directory {dirfd.shown(directory)} is none any more: {error.strerror}.",
            hint="Start the domain again, and look who changes memory_backing_dir.",
        ) from error
    return found.st_uid, found.st_gid


def dangling_links(config: LibvirtConfig, pools_dir: Path) -> list[Path]:
    """Return the links into a pool that lead to nothing, in all of libvirt's directories for memory files."""
    found: list[Path] = []
    left = _MOST_LOOKED_AT
    backing = memory_backing_dir(config)
    for base in _bases(backing):
        with contextlib.suppress(OSError), dirfd.opened(base) as at:
            for directory in _names_of_domains(base, at):
                with contextlib.suppress(OSError), dirfd.inside(directory, at) as there:
                    names, more = dirfd.names(there, _MOST_NAMES)
                    _crowded.say(base / directory, more=more)
                    left -= len(names)
                    found += [base / directory / name for name in names if _is_dangling(name, there, pools_dir)]
                if left < 0:
                    break
    _crowded.say(backing / "…", more=left < 0)
    return sorted(found)


def remove_dangling(links: Iterable[Path], pools_dir: Path) -> list[Path]:
    """Remove those links of ``dangling_links`` that still are such; return those that are gone by that."""
    gone = []
    for directory, some in itertools.groupby(links, lambda link: link.parent):
        with contextlib.suppress(OSError), dirfd.opened(directory) as at:
            for link in some:
                if dirfd.remove_link(link.name, at, lambda target: _leads_to_nothing(target, pools_dir)):
                    gone.append(link)
    return gone


def _is_dangling(name: str, at: int, pools_dir: Path) -> bool:
    try:
        return _leads_to_nothing(os.readlink(name, dir_fd=at), pools_dir)
    except OSError:  # it is no link
        return False


def _leads_to_nothing(target: str, pools_dir: Path) -> bool:
    """Tell whether a path is one in a pool, by its words alone, and nothing is there."""
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


class _Crowded:
    """Says once of each directory that there is more in it than is looked at."""

    def __init__(self) -> None:
        self._said: set[Path] = set()

    def say(self, directory: Path, *, more: bool) -> None:
        """Take note of how it is now."""
        if more and directory not in self._said and len(self._said) < _MOST_NAMES:
            self._said.add(directory)
            log.warning("there is more in %s than libvirt puts there; not all is looked at", dirfd.shown(directory))
        elif not more:
            self._said.discard(directory)


_crowded = _Crowded()


def _names_of_domains(base: Path, at: int, start: str = "") -> list[str]:
    """Return the names of domains' directories in ``base``, open ``at``. ``start``: only those that begin so.

    :raise OSError: When it cannot be read.
    """
    names, more = dirfd.names(at, _MOST_DIRECTORIES)
    _crowded.say(base, more=more)
    return [name for name in names if name.startswith(start) and name[:1].isdecimal() and "-" in name]


def _is_directory(name: str, at: int) -> bool:
    status = dirfd.status(name, at) if "/" not in name else None
    return status is not None and stat.S_ISDIR(status.st_mode)


def _bases(backing: Path) -> tuple[Path, Path]:
    """Return where domains may have theirs: without the driver's name in libvirt's default directory."""
    return backing / "libvirt" / "qemu", backing
