# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to files are heard of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from virt_dmem.host import huge_pages, writes


def test_a_write_is_heard_of_and_missing_files_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "number"
    file.write_text("1")

    async def story() -> None:
        with writes.heard([tmp_path / "none", file]) as written:
            assert not written.is_set()
            for _ in range(2):
                with file.open("r+") as opened:
                    opened.write("2")
                async with asyncio.timeout(60):
                    await written.wait()
                written.clear()

    asyncio.run(story())


@pytest.mark.needs_hugepages
def test_the_number_of_huge_pages_is_such_a_file() -> None:
    """Write what it is already."""
    files = huge_pages.number_files()
    assert Path("/proc/sys/vm/nr_hugepages") in files

    async def story(path: Path) -> None:
        with writes.heard(files) as written:
            path.write_text(path.read_text())
            async with asyncio.timeout(60):
                await written.wait()

    asyncio.run(story(Path("/proc/sys/vm/hugetlb_optimize_vmemmap")))
    asyncio.run(story(next(path for path in files if "node0" in path.parts and path.name == "nr_hugepages")))
