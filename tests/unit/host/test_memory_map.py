# SPDX-License-Identifier: GPL-2.0-or-later
"""Where memory lies, what was reserved at boot, what dmem= means, and what GRUB is to be told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.fake_tree import GIB, MIB, fake_memory_map, fake_tree, put
from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus, PermissionRefused, UsageError
from virt_dmem.host import boot_reservation, memory_map
from virt_dmem.host.dmem_cmdline import Parameter, parameters, parse_parameter, wanted
from virt_dmem.host.memory_map import SECTION
from virt_dmem.host.ranges import Range, common, total, whole, without

PC = [(0, 0x9FC00), (MIB, 3 * GIB - MIB), (4 * GIB, 13 * GIB)]
NODES = [[(0, 3 * GIB), (4 * GIB, 5 * GIB)], [(9 * GIB, 8 * GIB)]]


def two_nodes(root: Path, **more: object) -> Path:
    fake_tree(root, memory=(8 * GIB, 8 * GIB))
    return fake_memory_map(root, ram=PC, nodes=NODES, **more)  # type: ignore[arg-type]


def test_what_was_reserved_is_ram_that_the_kernel_does_not_use_on_its_node(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB, GIB), (16 * GIB, GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB, GIB),), 1: (Range(16 * GIB, GIB),)}


def test_a_range_over_two_nodes_is_divided(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(8 * GIB, 2 * GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(8 * GIB, GIB),), 1: (Range(9 * GIB, GIB),)}


def test_what_somebody_claimed_is_not_free_any_more(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB, GIB)], claimed=[(7 * GIB, 512 * MIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB + 512 * MIB, 512 * MIB),)}


def test_a_host_with_one_node_needs_no_table(tmp_path: Path) -> None:
    root = fake_memory_map(fake_tree(tmp_path), ram=PC, reserved=[(8 * GIB, 2 * GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(8 * GIB, 2 * GIB),)}


def test_without_a_table_the_memory_blocks_tell_the_nodes(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=(8 * GIB, 8 * GIB))
    fake_memory_map(root, ram=PC, reserved=[(6 * GIB, GIB), (12 * GIB, GIB)])
    put(root / "sys/devices/system/memory/block_size_bytes", "8000000\n")
    for node, start, end in ((0, 0, 3), (0, 4, 6), (0, 7, 9), (1, 9, 12), (1, 13, 17)):
        for block in range(start * GIB // SECTION, end * GIB // SECTION):
            (root / f"sys/devices/system/node/node{node}/memory{block}").mkdir()
    assert memory_map.reserved(root=root) == {0: (Range(6 * GIB, GIB),), 1: (Range(12 * GIB, GIB),)}


def test_who_may_not_see_addresses_is_told(tmp_path: Path) -> None:
    root = two_nodes(tmp_path)
    put(root / "proc/iomem", "00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n")
    with pytest.raises(PermissionRefused, match="root only"):
        memory_map.reserved(root=root)


@pytest.mark.parametrize(
    ("cmdline", "given"),
    [
        ("quiet", ()),
        ("memmap=1G$2G", (Range(2 * GIB, GIB),)),
        ("memmap=1G$2G,512M$0x100000000 memmap=1G!5G", (Range(2 * GIB, GIB), Range(4 * GIB, 512 * MIB))),
        ("memmap=exactmap memmap=x$y", ()),
        ("mem=8G", (Range(8 * GIB, (1 << 52) - 8 * GIB),)),
        ("mem=nopentium", ()),
    ],
)
def test_the_command_line_tells_what_was_kept_from_the_kernel(
    tmp_path: Path, cmdline: str, given: tuple[Range, ...]
) -> None:
    put(tmp_path / "proc/cmdline", f"BOOT_IMAGE=/x {cmdline}\n")
    assert memory_map.given_away(root=tmp_path) == given


def test_a_section_with_memory_of_the_kernel_has_struct_pages_and_is_left_out(tmp_path: Path) -> None:
    root = two_nodes(tmp_path, reserved=[(7 * GIB + 4 * MIB, GIB)])
    assert memory_map.reserved(root=root) == {0: (Range(7 * GIB + SECTION, GIB - SECTION),)}
    assert memory_map.bytes_with_struct_pages(root=root) == 16 * GIB - (GIB - SECTION)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1G", Parameter("dmem=1G", GIB)),
        ("512M:2M", Parameter("dmem=512M:2M", 512 * MIB, align=2 * MIB)),
        ("!4G", Parameter("dmem=!4G", 4 * GIB, kept=True)),
        ("!4G:1G", Parameter("dmem=!4G:1G", 4 * GIB, align=GIB, kept=True)),
        ("1G@0x180000000", Parameter("dmem=1G@0x180000000", GIB, start=6 * GIB)),
        ("1G@6G:1G", Parameter("dmem=1G@6G:1G", GIB, align=GIB, start=6 * GIB)),
    ],
)
def test_the_originals_parameter_is_understood(text: str, found: Parameter) -> None:
    assert parse_parameter(text) == found
    assert parameters(f"quiet dmem={text} memmap=1G$2G") == (found,)


@pytest.mark.parametrize("text", ["", "!", "x", "1G:3M", "1G:0", "0", "!1G@2G", "1G@", "1G:", "@1G"])
def test_what_is_no_such_parameter_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="dmem="):
        parse_parameter(text)


def test_the_parameter_means_sizes_of_nodes() -> None:
    ram = {0: (Range(0, 3 * GIB), Range(4 * GIB, 5 * GIB)), 1: (Range(9 * GIB, 8 * GIB),)}
    assert wanted(parameters("dmem=1G"), ram) == {0: GIB, 1: GIB}
    assert wanted(parameters("dmem=100M"), ram) == {0: SECTION, 1: SECTION}
    assert wanted(parameters("dmem=!2G"), ram) == {0: 6 * GIB, 1: 6 * GIB}
    assert wanted(parameters("dmem=!9G"), ram) == {}
    assert wanted(parameters("dmem=2G@8G"), ram) == {0: GIB, 1: GIB}
    assert wanted(parameters("dmem=1G@4G dmem=1G@12G"), ram) == {0: GIB, 1: GIB}


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
