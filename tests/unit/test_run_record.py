# SPDX-License-Identifier: GPL-2.0-or-later
"""What was run where: README says nothing that the record of runs does not have."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.rig import run_record
from tests.rig.repository import REPOSITORY

GENERATE = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "docs/generate.py")))
RUN = {
    "what": "module",
    "arch": "arm64",
    "kernel": "7.3.4",
    "libvirt": "",
    "qemu": "",
    "tests": 3,
    "date": "2026-11-30",
}
TESTS = """
import pytest
from tests.rig import run_record

@pytest.fixture(autouse=True)
def where(request):
    run_record.ran_on(request.node, run_record.environment("module", arch="arm64", kernel="7.3.4+deb13-arm64"))

def test_one(): pass
def test_two(): assert {second}
"""


def recorded(directory: Path, *options: str, second: bool = True) -> list[dict[str, object]]:
    """Run two tests with these options of pytest, and return what they record: never this repository's."""
    (directory / "test_it.py").write_text(TESTS.format(second=second))
    record = directory / "runs.json"
    program = (
        f"import sys, pytest; sys.path.insert(0, {str(REPOSITORY)!r}); from pathlib import Path\n"
        "from tests.rig import run_record, repository\n"
        f"run_record.RECORD = run_record.REPOSITORY = Path({str(directory)!r})\n"
        f"run_record.write.__defaults__ = (Path({str(record)!r}),)\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), *options]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run([*command, str(directory)], cwd=directory, capture_output=True, check=False, env=alone)
    return json.loads(record.read_text())["runs"] if record.exists() else []


def test_a_run_in_which_a_test_fails_is_not_recorded(tmp_path: Path) -> None:
    assert recorded(tmp_path, "-p", "tests.rig.run_record", second=False) == []


def test_a_run_that_does_not_ask_for_it_writes_nothing(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []


def test_a_run_that_passed_is_recorded_with_what_it_ran_on(tmp_path: Path) -> None:
    (found,) = recorded(tmp_path, "-p", "tests.rig.run_record")
    assert found == {**RUN, "tests": 2, "date": found["date"]}


def test_a_later_run_replaces_the_earlier_one_and_others_stay() -> None:
    other = {**RUN, "kernel": "6.12.117"}
    later = {**RUN, "tests": 5}
    assert run_record.merged([RUN, other], [later]) == [other, later], "6.12 comes before 7.3"


def test_versions_are_read_from_what_a_host_prints() -> None:
    said = "x86_64\n6.12.117+deb13-amd64\nlibvirtd (libvirt) 11.3.0\nQEMU emulator version 10.0.11 (Debian 1:10)\n"
    assert run_record.parse("host", said) == {
        "what": "host", "arch": "amd64", "kernel": "6.12.117", "libvirt": "11.3.0", "qemu": "10.0.11",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "claim"), [("7.3.4", "7.4.0"), ("| 3 ", "| 4 "), ("arm64", "amd64"), ("2026-11-30", "2026-12-01")]
)
def test_a_cell_that_claims_more_than_the_record_is_found(cell: str, claim: str) -> None:
    table = GENERATE.runs_table([RUN])
    assert cell in table
    readme = f"before\n{GENERATE.RUNS_BEGIN}\n{table.replace(cell, claim)}\n{GENERATE.RUNS_END}\nafter\n"
    assert GENERATE.with_runs(readme, [RUN]) != readme
    assert GENERATE.with_runs(readme.replace(claim, cell), [RUN]).count(cell) == 1


def test_a_readme_without_the_marks_is_not_made_shorter() -> None:
    with pytest.raises(ValueError, match="marks"):
        GENERATE.with_runs("before\n## Documentation\n", [RUN])


def test_readme_claims_what_the_record_has() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    runs = json.loads(run_record.RECORD.read_text("utf-8"))["runs"]
    assert GENERATE.with_runs(readme, runs) == readme, "run docs/generate.py"
