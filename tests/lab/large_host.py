# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what 320 GiB of guest memory cost a host, by the counters of one of 328 GiB that boots with each kind.

A host has less for itself by what MemTotal lacks, and by what the kernel allocates out of MemTotal because there is
more memory: the struct pages that HVO keeps (in new pages), and hash tables, which hosts of several nodes have in
vmalloc space.

The host's memory is sparse: of 328 GiB only what the kernel writes is taken here, at most the struct pages. Not
part of ``make test``; ``make lab-large`` runs it, and writes the table of README.md and docs/guide/dmemfs.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.image import Image

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GUESTS = 320 * GIB
OTHER_GIB = 4
"""Of each of the two nodes, for the host itself."""
STRUCT_PAGES = GUESTS // 64
TABLE = Path(__file__).parents[2] / "build/lab/large-host.md"


def boot(image: Image, *, guests: bool = True, hole: bool = False, cmdline: str = "") -> dict[str, int]:
    """Boot a host; return in bytes MemTotal less huge pages, these, struct pages, and what is allocated of it."""
    share = GUESTS // 2 // GIB if guests else 0
    hole_mib = share * GIB // MIB if hole else 0
    with Machine(
        image, node_gib=(OTHER_GIB + share,) * 2, hole_mib=hole_mib, cmdline=cmdline, name="large"
    ) as machine:
        meminfo = machine.run("cat /proc/meminfo").stdout
        found = {line.split(":")[0]: int(line.split()[1]) * KIB for line in meminfo.splitlines()}
        vmstat = dict(line.split() for line in machine.run("grep ^nr_memmap /proc/vmstat").stdout.splitlines())
        of_boot, anew = (int(vmstat[name]) * 4 * KIB for name in ("nr_memmap_boot_pages", "nr_memmap_pages"))
        tables = re.findall(r"hash table entries: .* (\d+) bytes, vmalloc", machine.run("dmesg").stdout)
        return {
            "rest": found["MemTotal"] - found["Hugetlb"],
            "huge": found["Hugetlb"],
            "memmap": of_boot + anew,
            "allocated": anew + sum(map(int, tables)),
        }


@pytest.fixture(scope="module")
def small(lab_image: Image) -> dict[str, int]:
    """The host without any memory for guests."""
    return boot(lab_image, guests=False)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Collect the rows of the table that is written at the end."""
    rows = ["| 320 GiB of guest memory as | the host loses | of it struct pages |", "|---|---|---|"]
    yield rows
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(rows) + "\n")


HVO = "hugetlb_free_vmemmap=on"
KINDS = {
    "ordinary memory": ({}, STRUCT_PAGES, 0),
    "2 MiB huge pages, HVO": (
        {"cmdline": f"{HVO} hugepagesz=2M hugepages={GUESTS // (2 * MIB)} init_on_alloc=0"},
        STRUCT_PAGES // 8,
        GUESTS,
    ),
    "1 GiB huge pages, HVO": ({"cmdline": f"{HVO} hugepagesz=1G hugepages={GUESTS // GIB}"}, 1280 * KIB, GUESTS),
    "withheld from the kernel, for dmemfs": ({"hole": True}, 0, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_320_gib_of_guest_memory_cost(
    lab_image: Image, small: dict[str, int], table: list[str], kind: str
) -> None:
    options, struct_pages, huge = KINDS[kind]
    large = boot(lab_image, **options)  # type: ignore[arg-type]
    assert large["huge"] == huge
    of_guests = 0 if huge or "hole" in options else GUESTS
    lost = small["rest"] - (large["rest"] - of_guests) + large["allocated"] - small["allocated"]
    memmap = large["memmap"] - small["memmap"]
    table.append(f"| {kind} | {lost // KIB} KiB | {memmap // KIB} KiB |")
    print(table[-1])
    assert memmap == pytest.approx(struct_pages, abs=MIB)
    if "hole" in options:
        assert abs(lost) <= 256 * KIB  # of one boot and the next
    else:
        assert lost >= memmap
