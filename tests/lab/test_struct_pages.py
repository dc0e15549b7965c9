# SPDX-License-Identifier: GPL-2.0-or-later
"""Test 1 GiB pages, and measure the cost of each type of memory by the host's own counters, on the booted host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import guests
from tests.lab.machine import Machine

MACHINE = {"node_gib": (4, 4), "name": "pages"}
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
TABLE = Path(__file__).parents[2] / "build/lab/struct-pages.md"
"""The measured figures; docs/guide/dmemfs.md has those of large_host.py."""


@pytest.fixture(scope="module")
def host(machine: Machine) -> Machine:
    guests.provide_guest(machine)
    return machine


def counters(host: Machine) -> dict[str, int]:
    """Return MemTotal and the kernel's struct pages in bytes; before Linux 6.11 it does not count these."""
    total = int(host.run("grep MemTotal /proc/meminfo").stdout.split()[1]) * KIB
    pages = re.findall(r"nr_memmap\w* (\d+)", host.run("cat /proc/vmstat").stdout)
    return {"total": total} | ({"memmap": sum(map(int, pages)) * 4 * KIB} if pages else {})


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Collect the rows of the table that is written at the end."""
    rows = ["| 2 GiB of guest memory | MemTotal gains | struct pages left |", "|---|---|---|"]
    yield rows
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(rows) + "\n")


def measured(host: Machine, table: list[str], size: str, options: str = "") -> tuple[int, int | None]:
    """Create a pool of 2 GiB; return the gain of MemTotal, and the remaining struct pages, in bytes.

    ``None`` if the kernel does not count these; virt-dmem reports an estimate then.
    """
    before = counters(host)
    nodes = "--node 0=1G --node 1=1G"
    host.run(f"virt-dmem pool create guests {nodes} --page-size {size} {options}", timeout=300)
    now = counters(host)
    gained = now["total"] - before["total"]
    saving = host.json("virt-dmem savings --json")["pools"][0]
    left = 32 * MIB - (before["memmap"] - now["memmap"]) if "memmap" in now else None
    assert (left is None) is (host.image.suite == "bookworm"), "Linux counts them since 6.11"
    kind = f"pages of {size}, {'no HVO' if options else 'HVO'}"
    table.append(f"| {kind} | {gained // KIB} KiB | {'not counted' if left is None else f'{left // KIB} KiB'} |")
    print(table[-1], f"says the product: {saving['metadata_left_bytes'] // KIB} KiB")
    assert saving["measured"] is (left is not None)
    assert 0 <= saving["metadata_left_bytes"] <= 32 * MIB
    if left is not None:  # virt-dmem's report matches the host's counters
        assert saving["metadata_left_bytes"] == left
    return gained, left


def assert_given_back(gained: int) -> None:
    """All of it, if the kernel moves what it keeps to a new page (vmemmap_remap_free), else 28 of 32 KiB."""
    assert 28 * MIB - 256 * KIB <= gained <= 32 * MIB + 256 * KIB


def test_the_boot_log_says_what_a_page_gives_back(host: Machine) -> None:
    said = host.run("dmesg | grep HugeTLB").stdout
    assert "28 KiB vmemmap can be freed for a 2.00 MiB page" in said
    assert "16380 KiB vmemmap can be freed for a 1.00 GiB page" in said


def test_without_hvo_all_struct_pages_are_left(host: Machine, table: list[str]) -> None:
    gained, left = measured(host, table, "2M", "--no-hvo")
    assert gained == pytest.approx(0, abs=64 * KIB)
    assert left in (None, pytest.approx(32 * MIB, abs=64 * KIB))
    host.run("virt-dmem pool destroy guests")


def test_of_the_struct_pages_of_a_page_of_1_gib_one_page_is_left(host: Machine, table: list[str]) -> None:
    gained, left = measured(host, table, "1G")
    assert_given_back(gained)
    assert left in (None, pytest.approx(2 * 4 * KIB, abs=64 * KIB))


def test_a_kvm_guest_has_each_cell_in_a_page_of_its_node_and_boots(host: Machine) -> None:
    uuid = guests.define(host, "two-cells", cells=("1GiB", "1GiB"), boots=True)
    host.run("virsh -q start two-cells", timeout=240)
    guests.boot(host, "two-cells")
    assert guests.memory_of(host, uuid) == {"ram-node0": (GIB, {0}), "ram-node1": (GIB, {1})}
    assert guests.pool(host)["free_bytes"] == 0


def test_after_a_reboot_the_pool_is_there_and_the_guest_starts_again(host: Machine) -> None:
    host.run("systemctl -q enable virt-dmem-pool@guests.service && virsh -q autostart two-cells")
    host.reboot()
    host.wait_for("virsh domstate two-cells | grep -q running", timeout=400)
    assert guests.pool(host) == {"capacity_bytes": 2 * GIB, "reserved_bytes": 2 * GIB, "free_bytes": 0}
    host.run("virsh -q destroy two-cells")
    assert guests.pool(host)["free_bytes"] == 2 * GIB


def test_of_the_struct_pages_of_a_page_of_2_mib_one_page_is_left(host: Machine, table: list[str]) -> None:
    """Runs last: Linux 6.12.117 loses optimized pages when it frees them ("Bad page state")."""
    host.run("virt-dmem unapply two-cells && virt-dmem pool destroy guests --force")
    _gained, left = measured(host, table, "2M")  # MemTotal gains only memory that the kernel had since its boot
    assert left in (None, pytest.approx(1024 * 4 * KIB, abs=64 * KIB))
