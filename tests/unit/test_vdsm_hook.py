# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook for oVirt's vdsm, called as vdsm calls it (lib/vdsm/common/hooks.py there): vdsm itself is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.domains import domain_xml
from tests.rig.repository import REPOSITORY
from virt_dmem.domain_xml.rewrite import apply

HOOK = REPOSITORY / "hooks/vdsm/50_virt_dmem"
XML = domain_xml("guest", uuid="13070562-2ee7-4092-a746-7975ff5b3993").encode()


def called(file: Path, **properties: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "LC_ALL": "C", "vmId": "13070562-2ee7-4092-a746-7975ff5b3993", **properties}
    return subprocess.run(
        [HOOK], env=environment | {"_hook_domxml": str(file)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The domain XML, where vdsm puts it."""
    file = tmp_path / "hook domain"
    file.write_bytes(XML)
    file.chmod(0o600)
    return file


def test_a_vm_with_the_property_gets_its_memory_from_that_pool(file: Path) -> None:
    before = file.stat()
    done = called(file, dmem_pool="guests")
    assert (done.returncode, done.stdout) == (0, "")
    assert file.read_bytes() == apply(XML, pool="guests", monitor=True)
    after = file.stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


@pytest.mark.parametrize("properties", [{}, {"dmem_pool": ""}, {"hugepages": "2048"}], ids=str)
def test_a_vm_without_it_is_left_alone(file: Path, properties: dict[str, str]) -> None:
    assert called(file, **properties).returncode == 0
    assert file.read_bytes() == XML


def test_a_vm_without_it_starts_whatever_else_is_wrong() -> None:
    done = subprocess.run([HOOK], env={"PATH": "/nonexistent"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("pool", ["../guests", "--undo", "guests; reboot"])
def test_a_pool_that_cannot_be_fails_the_start_and_changes_nothing(file: Path, pool: str) -> None:
    done = called(file, dmem_pool=pool)
    assert done.returncode == 2
    assert done.stderr
    assert file.read_bytes() == XML


def test_xml_that_cannot_be_rewritten_fails_the_start_and_is_left_as_it_is(file: Path) -> None:
    file.write_text("<domain><name>x")
    assert called(file, dmem_pool="guests").returncode == 2
    assert file.read_text() == "<domain><name>x"


def test_without_virt_dmem_the_start_fails(file: Path) -> None:
    assert called(file, dmem_pool="guests", PATH="/usr/bin:/bin").returncode == 2
    assert file.read_bytes() == XML


def test_only_what_vdsm_can_run_is_run() -> None:
    assert os.access(HOOK, os.X_OK)
