# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of this machine and of fake trees."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tests.rig.fake_tree import MIB, fake_process
from virt_dmem.host import processes


def test_mappings_of_a_process_are_found_by_device_and_inode(tmp_path: Path) -> None:
    file = Path("/dev/shm") / f"virt-dmem-test-{os.getpid()}"
    file.write_bytes(bytes(3 * mmap.PAGESIZE))
    try:
        with file.open("r+b") as opened:
            memory = mmap.mmap(opened.fileno(), 2 * mmap.PAGESIZE, offset=mmap.PAGESIZE)
        found = file.stat()
        (area,) = [area for area in processes.mappings(os.getpid()) if area.inode == found.st_ino]
        assert (area.device, area.offset, area.end - area.start) == (found.st_dev, mmap.PAGESIZE, 2 * mmap.PAGESIZE)
        assert area.perms == "rw-s"
        assert list(processes.mappings(os.getpid(), of={(found.st_dev, found.st_ino)})) == [area]
        assert list(processes.mappings(os.getpid(), of={(found.st_dev, found.st_ino // 10)})) == []
        assert processes.processes_mapping(found.st_dev, found.st_ino) == (os.getpid(),)
        assert os.getpid() in processes.processes_using(found.st_dev)
        assert processes.processes_holding(found.st_dev, found.st_ino) == (os.getpid(),)
        memory.close()
        with file.open("rb"):
            assert processes.processes_holding(found.st_dev, found.st_ino) == (os.getpid(),)
        assert processes.processes_holding(found.st_dev, found.st_ino) == ()
        assert processes.processes_mapping(found.st_dev, found.st_ino) == ()
    finally:
        file.unlink()


def test_mappings_survive_a_process_that_is_gone_and_a_file_name_with_a_newline(tmp_path: Path) -> None:
    fake_process(
        tmp_path,
        7,
        maps=(
            "7f0000000000-7f0000200000 rw-s 00200000 103:02 4711                       /a\\012b (deleted)\n"
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
        ),
    )
    first, _ = processes.mappings(7, root=tmp_path)
    assert first == processes.Mapping(0x7F0000000000, 0x7F0000200000, "rw-s", 2 * MIB, os.makedev(0x103, 2), 4711)
    assert list(processes.mappings(7, of={(first.device, first.inode)}, root=tmp_path)) == [first]
    assert list(processes.mappings(8, root=tmp_path)) == []
    assert processes.process_name(8, root=tmp_path) == ""
