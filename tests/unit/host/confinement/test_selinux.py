# SPDX-License-Identifier: GPL-2.0-or-later
"""Labels on a real file of tmpfs; a directory stands in for a host where SELinux is on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from virt_dmem.host.confinement.selinux import label_file, label_of

LABEL = "system_u:object_r:svirt_image_t:s0:c1,c2"


@pytest.fixture
def file() -> Iterator[Path]:
    """A file in memory: tmpfs keeps labels also where no SELinux looks at them."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="virt-dmem-test-") as opened:
        yield Path(opened.name)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The root of a host with SELinux."""
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    return tmp_path


def test_a_file_gets_the_label_and_keeps_it(file: Path, host: Path) -> None:
    for label in (LABEL, None, LABEL):
        label_file(file, label, root=host)
        assert label_of(file) == LABEL
    assert os.getxattr(file, "security.selinux") == LABEL.encode() + b"\0"


def test_without_selinux_nothing_is_labelled(file: Path, tmp_path: Path) -> None:
    label_file(file, LABEL, root=tmp_path)
    assert label_of(file) is None


@pytest.mark.parametrize("name", ["/proc/version", "/nowhere"])
def test_a_label_that_is_rejected_is_logged(name: str, host: Path, caplog: pytest.LogCaptureFixture) -> None:
    label_file(name, f"{LABEL}{name}", root=host)
    assert f"{name} cannot be labelled {LABEL}" in caplog.text
