# SPDX-License-Identifier: GPL-2.0-or-later
"""Test the table by which dmemfs' files outlive their mount: kernel/table.c, in user space."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_KERNEL = Path(__file__).parents[2] / "kernel"
_FLAGS = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the checks with the sanitizers, so that a read outside of a table ends them."""
    built = tmp_path_factory.mktemp("table") / "tabletest"
    sources = [_KERNEL / "tests/tabletest.c", _KERNEL / "table.c"]
    subprocess.run(["cc", *_FLAGS, "-o", built, *sources], check=True)
    return built


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_table_is_read_as_written_and_refused_when_torn_or_hostile(program: Path, seed: int) -> None:
    done = subprocess.run([program, "10000", str(seed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok table\n")
