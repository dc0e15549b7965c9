# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify how the C programs are compiled, and packed; a fake compiler, but for the wheel."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem import __version__
from virt_dmem.native import build as module
from virt_dmem.native.build import PROGRAMS, build, main

COMPILER = """#!/bin/sh
printf '%s\\n' "$@" > {arguments}
while [ "$1" != -o ]; do shift; done
echo new > "$2"
exit {status}
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def fake_compiler(directory: Path, *, status: int = 0) -> Path:
    """Write a compiler that records its arguments, writes its output and ends with that status."""
    program = directory / "compiler"
    program.write_text(COMPILER.format(arguments=directory / "arguments", status=status))
    program.chmod(0o755)
    return program


def given(directory: Path) -> list[str]:
    return (directory / "arguments").read_text().splitlines()


def test_the_settings_of_a_distribution_are_honoured_and_our_flags_come_after_them(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CC", f"{fake_compiler(tmp_path)} --first")
    environment.setenv("CFLAGS", "-O3 -g")
    environment.setenv("CPPFLAGS", "-D'A=b c'")
    environment.setenv("LDFLAGS", "-Wl,-z,now")
    output = tmp_path / "out" / "virt-dmem-hook"
    output.parent.mkdir()
    assert build("virt-dmem-hook", output, flags=["-O0"]) == output
    arguments = given(tmp_path)
    assert arguments[0] == "--first"
    assert f'-DVIRT_DMEM_VERSION="{__version__}"' in arguments
    in_order = ["-DA=b c", "-O3", "-g", "-O0", "-o", "-ljson-c", "-Wl,-z,now"]
    assert [argument for argument in arguments if argument in in_order] == in_order
    assert "-O2" not in arguments
    source = Path(module.__file__).with_name("hook.c")
    assert arguments.index(str(source)) < arguments.index("-ljson-c"), "the linker reads from left to right"
    assert [path.name for path in output.parent.iterdir()] == ["virt-dmem-hook"]
    assert stat.S_IMODE(output.stat().st_mode) == 0o755


def test_without_settings_programs_are_optimized(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CC", str(fake_compiler(tmp_path)))
    environment.setenv("CFLAGS", "")
    build("virt-dmem-prefault", tmp_path / "program")
    assert "-O2" in given(tmp_path)


def test_a_program_is_replaced_only_by_a_complete_one(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CC", str(fake_compiler(tmp_path, status=1)))
    output = tmp_path / "out" / "virt-dmem-prefault"
    output.parent.mkdir()
    output.write_text("old\n")
    with pytest.raises(subprocess.CalledProcessError):
        build("virt-dmem-prefault", output)
    assert output.read_text() == "old\n"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("error", [FileNotFoundError("no cc"), subprocess.CalledProcessError(1, "cc")], ids=type)
def test_a_program_that_cannot_be_built_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_program: str) -> None:
        raise error

    environment.setattr(module, "build", fail)
    environment.setattr("sys.argv", ["build", "virt-dmem-hook"])
    assert main() == 1
    assert capsys.readouterr().err.startswith(f"virt-dmem-hook was not built: {error}")


def test_all_programs_are_built_unless_some_are_named(environment: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    environment.setattr(module, "build", built.append)
    environment.setattr("sys.argv", ["build"])
    assert main() == 0
    assert built == list(PROGRAMS)
    environment.setattr("sys.argv", ["build", "virt-dmem-hook"])
    assert main() == 0
    assert built[len(PROGRAMS) :] == ["virt-dmem-hook"]


def test_the_wheel_carries_the_programs_executable_and_names_its_platform(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    leave = shutil.ignore_patterns(".*cache", ".git", ".venv", "__pycache__", "tests", "dist", *PROGRAMS)
    shutil.copytree(REPOSITORY, tree, ignore=leave, symlinks=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert f"-py3-none-linux_{os.uname().machine}" in wheel.name
    for name in PROGRAMS:
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.getinfo(f"virt_dmem/native/{name}")
            assert stat.S_IMODE(packed.external_attr >> 16) == 0o755
            archive.extract(packed, tmp_path)
        program = tmp_path / packed.filename
        program.chmod(0o755)  # zipfile drops modes, installers do not
        assert (
            subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.split()[0]
            == name
        )
