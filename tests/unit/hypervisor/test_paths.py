# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of libvirt's directories is a starting domain's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from virt_dmem.config.schema import LibvirtConfig
from virt_dmem.errors import ExtentError
from virt_dmem.hypervisor.paths import domain_directory


@pytest.fixture
def config(tmp_path: Path) -> LibvirtConfig:
    (tmp_path / "qemu.conf").write_text(f'memory_backing_dir = "{tmp_path}"\n')
    return LibvirtConfig(config_file=str(tmp_path / "qemu.conf"))


@pytest.mark.parametrize("base", ["", "libvirt/qemu"])
@pytest.mark.parametrize("name", ["vm", "a-name-of-more-than-twenty-characters", "ünïcode-of-twenty-and-more"])
def test_it_is_named_by_number_and_the_first_20_characters(
    tmp_path: Path, config: LibvirtConfig, base: str, name: str
) -> None:
    for directory in ("6-vm", f"7-{name[:20]}", "7-another", f"77-{name[:20]}"):
        (tmp_path / base / directory).mkdir(parents=True)
    os.utime(tmp_path / base / "7-another")  # the youngest
    assert domain_directory(config, name, 7) == tmp_path / base / f"7-{name[:20]}"


def test_called_otherwise_it_is_found_by_its_number(tmp_path: Path, config: LibvirtConfig) -> None:
    for directory in ("7-left-by-one-before", "7-short", "77-vm"):
        (tmp_path / directory).mkdir()
    time.sleep(0.02)  # the kernel's clock for files ticks slowly
    os.utime(tmp_path / "7-short")
    assert domain_directory(config, "vm", 7) == tmp_path / "7-short"


def test_a_link_or_a_file_is_none(tmp_path: Path, config: LibvirtConfig) -> None:
    (tmp_path / "7-vm").symlink_to("/tmp")
    (tmp_path / "8-vm").touch()
    for number in (7, 8, 9, None):
        with pytest.raises(ExtentError, match="no directory"):
            domain_directory(config, "vm", number)
