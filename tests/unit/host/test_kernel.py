# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.fake_tree import BOOT, fake_tree, put
from virt_dmem.host import kernel


def test_struct_pages_are_counted_in_bytes_where_the_kernel_counts_them(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert kernel.struct_page_bytes(root=fake_tree(tmp_path / "new", struct_pages=(5, 7))) == 12 * page
    assert kernel.struct_page_bytes(root=fake_tree(tmp_path / "old", struct_pages=None)) is None


def test_pressure_is_the_share_of_time_that_tasks_waited_and_nothing_where_the_kernel_is_silent(
    tmp_path: Path,
) -> None:
    assert kernel.pressure("cpu", root=tmp_path) == 0
    said = "some avg10=12.50 avg60=3.00 avg300=1.00 total=123\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=4\n"
    put(tmp_path / "proc/pressure/memory", said)
    assert kernel.pressure("memory", root=tmp_path) == 12.5
    assert 0 <= kernel.pressure("cpu") <= 100


def test_the_boot_id_is_a_uuid(tmp_path: Path) -> None:
    assert kernel.boot_id(root=fake_tree(tmp_path)) == BOOT
    assert len(kernel.boot_id()) == 36


@pytest.mark.parametrize(
    ("nested", "allowed", "need"),
    [
        ("Y", "N", True),
        ("1", "0", True),
        ("Y", "Y", False),
        ("N", "N", False),
        ("Y", None, False),
        (None, "N", False),
    ],
)
def test_guests_in_guests_need_struct_pages_where_kvm_pins_them(
    tmp_path: Path, nested: str | None, allowed: str | None, need: bool
) -> None:
    if nested is not None:
        put(tmp_path / "sys/module/kvm_amd/parameters/nested", f"{nested}\n")
    if allowed is not None:
        put(tmp_path / "sys/module/kvm/parameters/allow_unsafe_mappings", f"{allowed}\n")
    assert kernel.nested_guests_need_struct_pages(root=tmp_path) is need
