# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the user of a starting domain's QEMU, and the directory where it will open its memory backends."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.errors import ExtentError
from virt_dmem.host import dirfd
from virt_dmem.hypervisor.guest_ram import memory_directory
from virt_dmem.hypervisor.paths import domain_directory, memory_backing_dir, owner_of

__all__ = ["placed", "placed_running"]

_NUMBER = re.compile(r"\+[0-9]{1,10}")
_MAX_ID = 2**32 - 2
"""The largest user or group id; the next one means "unchanged" to chown(2)."""


def placed(config: Config, domain: DomainMemory) -> tuple[Path, tuple[int, int]]:
    """Return libvirt's directory for a domain's memory files, and the user and group that QEMU runs as.

    They come from the DAC label of the XML; on a host without the DAC driver it has none, and QEMU's user is the
    owner of that directory. For worker threads.

    :raise ExtentError: When the directory or the user does not exist.
    """
    directory = domain_directory(config.libvirt, domain.name, domain.domain_id)
    uid, gid = (0, 0) if domain.dac_user and domain.dac_group else owner_of(directory)
    if domain.dac_user:
        uid = _number_or(domain.dac_user, lambda name: pwd.getpwnam(name).pw_uid)
    if domain.dac_group:
        gid = _number_or(domain.dac_group, lambda name: grp.getgrnam(name).gr_gid)
    return directory, (uid, gid)


def placed_running(config: Config, domain: DomainMemory, pid: int) -> tuple[Path, tuple[int, int]]:
    """Return the same for a domain that has been running, as this QEMU (PID), since qemu.conf may have changed.

    :raise ExtentError: As ``placed``; names the change of memory_backing_dir, if that is the reason.
    """
    try:
        return placed(config, domain)
    except ExtentError as error:
        used, now = memory_directory(pid), memory_backing_dir(config.libvirt)
        if used is None or used.is_relative_to(now):
            raise
        raise ExtentError(
            f"Domain {domain.name} was started with its memory files in {dirfd.shown(used)}, and memory_backing_dir"
            f" in qemu.conf is {now} now, where libvirt opens new ones.",
            hint="Set memory_backing_dir back and restart libvirtd, or shut the domain down and start it.",
        ) from error


def _number_or(label: str, look_up: Callable[[str], int]) -> int:
    """Return the id of one half of a DAC label: ``+64055`` is an id, anything else a name.

    :raise ExtentError: When the name does not exist.
    """
    if _NUMBER.fullmatch(label) and int(label[1:]) <= _MAX_ID:
        return int(label[1:])
    try:
        return look_up(label)
    except (KeyError, ValueError) as error:
        raise ExtentError(
            f"The domain's DAC label names {label!r}, which does not exist on this host.",
            hint="Fix <seclabel model='dac'> of the domain, or user and group in qemu.conf.",
        ) from error
