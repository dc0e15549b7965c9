# SPDX-License-Identifier: GPL-2.0-or-later
"""A failed system call is told with the file and the remedy, wherever it happened."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.rig.full_disk import mount_full
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import DmemError, PoolError
from virt_dmem.host.ram import boot_reservation
from virt_dmem.os_errors import explained, naming, remedy
from virt_dmem.runtime.attempts import Round


def failing(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


def test_the_file_and_the_remedy_are_named() -> None:
    error = explained(
        failing(errno.ENOSPC), "/var/lib/virt-dmem/pools/p.json", kind=PoolError, doing="Written in vain"
    )
    assert error.message == "Written in vain: No space left on device: /var/lib/virt-dmem/pools/p.json."
    assert "df -h /var/lib/virt-dmem/pools" in error.hint
    assert type(error) is PoolError
    assert explained(failing(errno.EROFS, "/a/b")).message == "Read-only file system: /a/b."
    assert "read-only" in explained(failing(errno.EROFS, "/a/b")).hint
    assert explained(failing(errno.EBUSY), otherwise="Stop it.").hint == "Stop it."
    assert explained(failing(errno.EMFILE), otherwise="Stop it.").hint != "Stop it."
    assert explained(OSError("odd")).message == "odd."
    assert remedy(failing(errno.EBUSY)) == ""
    with pytest.raises(FileNotFoundError) as caught, naming("/whole/path"):
        os.stat("path", dir_fd=os.open("/", os.O_PATH | os.O_CLOEXEC))
    assert caught.value.filename == "/whole/path"


def test_an_alert_names_them_too() -> None:
    found = Round()
    with found.trying("it"):
        raise failing(errno.ENOSPC, "/a/b")
    assert found.failed["it"].startswith("No space left on device: /a/b. Free space there ('df -h /a'")


@in_own_mount_namespace
def test_the_settings_of_grub_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = boot_reservation.write_grub("memmap=1G$4G", root=tmp_path)
    before = path.read_bytes()
    mount_full(path.parent)
    with pytest.raises(DmemError, match=f"No space left on device: {path}") as caught:
        boot_reservation.write_grub("memmap=2G$4G", root=tmp_path)
    assert "Free space there" in caught.value.hint
    assert {found.name for found in path.parent.iterdir()} == {path.name, "filler"}
    assert path.read_bytes() == before
    subprocess.run(["umount", path.parent], check=True)
    assert path.read_bytes() == before
