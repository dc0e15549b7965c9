# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose what to reserve at boot, and configure GRUB for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.fake_tree import GIB, MIB
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus
from virt_dmem.host.ram import boot_reservation
from virt_dmem.host.ram.memory_map import SECTION
from virt_dmem.host.ram.ranges import Range, common, total, whole, without


@given(
    ram=st.lists(st.tuples(st.integers(0, 64), st.integers(1, 48)), min_size=1, max_size=4),
    odd=st.integers(0, 127),
    sections=st.integers(1, 64),
)
def test_what_is_chosen_is_whole_sections_of_the_nodes_ram_above_the_kernel(
    ram: list[tuple[int, int]], odd: int, sections: int
) -> None:
    ranges = [Range(start * 256 * MIB + odd * MIB, size * 256 * MIB) for start, size in ram]
    found = boot_reservation.choose({3: tuple(ranges)}, {3: sections * SECTION})
    usable = whole(without(ranges, [Range(0, GIB)]), SECTION)
    if found is None:
        assert total(usable) < sections * SECTION
        return
    assert total(found[3]) == sections * SECTION
    assert common(found[3], usable) == common(found[3], found[3])
    low = total(common(found[3], [Range(0, 4 * GIB)]))
    high = [total(whole(without(ranges, [Range(0, 4 * GIB)]), unit)) for unit in (GIB, SECTION)]
    assert low in [max(0, sections * SECTION - available) for available in high], "no more of it than need be"


def test_the_upper_end_of_each_node_is_reserved() -> None:
    ram = {0: (Range(MIB, 3 * GIB - MIB), Range(4 * GIB, 5 * GIB)), 1: (Range(9 * GIB, 8 * GIB - MIB),)}
    found = boot_reservation.choose(ram, {0: 2 * GIB, 1: 2 * GIB})
    assert found == {0: (Range(7 * GIB, 2 * GIB),), 1: (Range(14 * GIB, 2 * GIB),)}
    assert boot_reservation.memmap(found[0]) == "memmap=2G$7G"
    assert boot_reservation.choose(ram, {0: 9 * GIB}) is None


def test_grub_gives_the_kernel_the_dollar(tmp_path: Path) -> None:
    """What sh makes of the drop-in goes into grub.cfg, where GRUB takes one backslash away before the dollar."""
    path = boot_reservation.write_grub("memmap=1G$0x100000000 memmap=128M$2G", root=tmp_path)
    assert path == tmp_path / "etc/default/grub.d/virt-dmem.cfg"
    said = subprocess.run(
        ["sh", "-euc", 'GRUB_CMDLINE_LINUX=quiet; . "$0"; printf %s "$GRUB_CMDLINE_LINUX"', path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "quiet memmap=1G\\$0x100000000 memmap=128M\\$2G"
    assert boot_reservation.remove_grub(root=tmp_path)
    assert not boot_reservation.remove_grub(root=tmp_path)
    assert list(path.parent.iterdir()) == []


def test_without_addresses_grub_is_not_told_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-host", "--guest-memory", "4000T", "--write-grub"]) == ExitStatus.USAGE
    assert "unknown" in capsys.readouterr().err
    assert main(["plan-host"]) == ExitStatus.USAGE
