# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the commands that README and docs show to operators, document by document, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.daemon import Daemon
from tests.rig.documents import DOCUMENTS, lines, why_not_run
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt

DOCUMENTS_TO_RUN = [path for path in DOCUMENTS if not all(map(why_not_run, lines(path)))]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/usr/bin:/bin"}


def typed(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-ec", command], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip


@pytest.fixture
def my_guest(libvirtd: PrivateLibvirt, daemon: Daemon, tmp_path: Path) -> Iterator[None]:
    libvirtd.define(domain_xml("my-guest"))
    yield
    libvirtd.remove()
    typed("virt-dmem pool destroy guests", tmp_path)


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages", "my_guest")
@pytest.mark.parametrize("document", DOCUMENTS_TO_RUN, ids=lambda path: path.name)
def test_the_commands_of_a_document_work_in_their_order(document: Path, tmp_path: Path) -> None:
    commands = [line for line in lines(document) if not why_not_run(line)]
    if not any("pool create" in command for command in commands):
        assert typed("virt-dmem pool create guests --backend tmpfs --size 64M", tmp_path).returncode == 0
    for command in commands:
        done = typed(command, tmp_path)
        nothing_is_installed = command in ("virt-dmem check", "virt-dmem status")
        allowed = (0, 3) if nothing_is_installed else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}{done.stderr}"
    if document.name == "README.md":
        assert "virt-dmem.dev" not in (tmp_path / "my-guest.xml").read_text()


def test_the_documents_that_show_most_are_among_them() -> None:
    names = {path.name for path in DOCUMENTS_TO_RUN}
    assert names >= {"README.md", "operations.md", "alerts.md", "metrics.md"}
