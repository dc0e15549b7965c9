# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem import __version__
from virt_dmem.allocation.ledger_schema import SCHEMA_VERSION
from virt_dmem.cli.parser import build_parser as command
from virt_dmem.daemon.main import build_parser as daemon
from virt_dmem.version import version_and_commit


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "virt_dmem"
    package.mkdir()
    return package


def test_an_installed_version_names_the_commit_that_it_was_built_from(package: Path) -> None:
    (package / "commit").write_text("0123abc\n")
    assert version_and_commit(package) == f"{__version__} (0123abc)"


def test_a_checkout_names_its_commit_and_whether_files_were_changed(package: Path) -> None:
    (package / "module.py").write_text("")
    git = ["git", "-C", package.parent, "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    said = version_and_commit(package)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{__version__} ({commit[:7]}")
    (package / "module.py").write_text("changed")
    assert version_and_commit(package) == f"{said[:-1]}-dirty)"


def test_without_a_record_and_without_git_it_is_the_version_alone(package: Path) -> None:
    assert version_and_commit(package) == __version__
    (package.parent / ".git").mkdir()
    assert version_and_commit(package) == __version__


@pytest.mark.parametrize("parser", [command([]), daemon()], ids=["virt-dmem", "virt-dmemd"])
def test_each_program_tells_it(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{parser.prog} {version_and_commit()}\n"


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("packaging/debian/changelog", r"^virt-dmem \((.*)-1\)"),
        ("packaging/rpm/virt-dmem.spec", r"^Version: +(.*)$"),
        ("packaging/selinux/virt_dmem.te", r"^policy_module\(virt_dmem, (.*)\)$"),
        ("docs/CHANGELOG.md", r"^## (\S+)"),
    ],
)
def test_packages_and_changelog_begin_with_the_same_version(file: str, pattern: str) -> None:
    found = re.search(pattern, (REPOSITORY / file).read_text("utf-8"), re.MULTILINE)
    assert found
    assert found[1] == __version__


def test_the_rpm_refuses_a_ledger_of_a_later_version_than_ours() -> None:
    spec = (REPOSITORY / "packaging/rpm/virt-dmem.spec").read_text("utf-8")
    assert re.findall(r"^%global ledger_version (\d+)$", spec, re.MULTILINE) == [str(SCHEMA_VERSION)]
