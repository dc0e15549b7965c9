# SPDX-License-Identifier: GPL-2.0-or-later
"""The mounts of this mount namespace, and of fake trees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.rig.fake_tree import put
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.host import mounts


def test_mounts_are_read_with_spaces_optional_fields_and_odd_bytes(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/mountinfo", "")
    (tmp_path / "proc/self/mountinfo").write_bytes(
        b"21 1 8:1 / / rw shared:1 master:2 - ext4 /dev/sda1 rw\n"
        b"22 21 0:40 /a\\040b /mnt/with\\040space\\134\\011 rw - tmpfs my\\040name rw,size=4k\n"
        b"23 21 0:41 / /mnt/\xff\x0c\xc2\x85 rw - hugetlbfs none rw\n"
        b"24 21 0:42 / /mnt/empty-source rw - tmpfs  rw\n"
    )
    found = mounts.mounts(root=tmp_path)
    assert found[1] == mounts.Mount(
        os.makedev(0, 40), "/a b", "/mnt/with space\\\t", "tmpfs", "my name", "rw,size=4k"
    )
    assert found[2].path == os.fsdecode(b"/mnt/\xff\x0c\xc2\x85")
    assert found[3].source == ""


def test_the_uppermost_mount_counts(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/mountinfo", "21 1 0:40 / /p rw - tmpfs a rw\n22 21 0:41 / /p rw - hugetlbfs b rw\n")
    found = mounts.mount_at(Path("/p"), root=tmp_path)
    assert found is not None
    assert found.fstype == "hugetlbfs"
    assert mounts.mount_at(Path("/q"), root=tmp_path) is None


def test_the_device_of_a_mount_is_what_stat_says() -> None:
    found = mounts.mount_at(Path("/proc"))
    assert found is not None
    assert found.device == Path("/proc").stat().st_dev


@in_own_mount_namespace
def test_a_mount_is_there_and_gone_as_soon_as_it_is(tmp_path: Path) -> None:
    """The table is read again when it changed, also by another process, and in a namespace of one's own."""
    for _ in range(3):
        assert mounts.mount_at(tmp_path) is None
        subprocess.run(["mount", "-t", "tmpfs", "here", tmp_path], check=True)
        found = mounts.mount_at(tmp_path)
        assert found is not None
        assert (found.fstype, found.source) == ("tmpfs", "here")
        subprocess.run(["mount", "-t", "ramfs", "above", tmp_path], check=True)
        found = mounts.mount_at(tmp_path)
        assert found is not None
        assert found.source == "above"
        subprocess.run(["umount", tmp_path], check=True)
        subprocess.run(["umount", tmp_path], check=True)
    assert mounts.mount_at(tmp_path) is None
