# SPDX-License-Identifier: GPL-2.0-or-later
"""Record on what a run of tests passed, in docs/reference/runs.json, from which README's table is made.

A plugin of pytest, and loaded only on request (``make … RECORD=1``): without it no run writes into the tree. A run
is recorded if all of it passed; it replaces the record of an earlier one on the same.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.rig.repository import REPOSITORY

if TYPE_CHECKING:
    import pytest

__all__ = [
    "PLUGIN",
    "RECORD",
    "SHOW",
    "environment",
    "is_recorded",
    "merged",
    "parse",
    "ran_on",
    "this_host",
    "write",
]

RECORD = REPOSITORY / "docs/reference/runs.json"
SHOW = "uname -m; uname -r; libvirtd --version; qemu-system-$(uname -m) --version"
"""The command that shows the versions of a host."""
PLUGIN = "tests.rig.run_record"
"""What pytest's option ``-p`` takes."""
_PROPERTY = "ran on"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def is_recorded(config: pytest.Config) -> bool:
    """Return whether this run is to be recorded."""
    return config.pluginmanager.hasplugin(PLUGIN)


def environment(what: str, *, arch: str, kernel: str, libvirt: str = "", qemu: str = "") -> dict[str, str]:
    """Return on what tests run: the versions as numbers, empty for what they do not use."""
    numbers = {"kernel": kernel, "libvirt": libvirt, "qemu": qemu}
    short = {name: found[0] if (found := re.match(r"[\d.]*\d", text)) else "" for name, text in numbers.items()}
    return {"what": what, "arch": arch, **short}


def ran_on(item: pytest.Item, what: dict[str, str]) -> None:
    """Note on what a test runs."""
    item.user_properties.append((_PROPERTY, json.dumps(what)))


def parse(what: str, said: str) -> dict[str, str]:
    """Return the environment that ``SHOW`` printed."""
    machine, kernel, *versions = said.splitlines()
    found = dict(re.findall(r"(libvirt|QEMU)\D*([\d.]*\d)", "\n".join(versions)))
    arch = _ARCHITECTURES.get(machine, machine)
    return environment(what, arch=arch, kernel=kernel, libvirt=found["libvirt"], qemu=found["QEMU"])


@functools.cache
def _shown() -> str:
    return subprocess.run(["sh", "-c", SHOW], capture_output=True, text=True, check=False).stdout


def this_host(what: str) -> dict[str, str]:
    """Return the environment of tests that run on this host."""
    return parse(what, _shown())


def merged(runs: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the recorded runs with new ones, which replace those in the same environment."""

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        numbers = [[int(part) for part in run[name].split(".") if part] for name in ("kernel", "libvirt", "qemu")]
        return (run["arch"], *map(tuple, numbers), run["what"])

    found = {key(run): run for run in (*runs, *new)}
    return [found[at] for at in sorted(found)]


def write(new: list[dict[str, Any]], path: Path = RECORD) -> None:
    """Add runs to the record."""
    runs = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []
    path.write_text(json.dumps({"schema": 1, "runs": merged(runs, new)}, indent=1) + "\n", "utf-8")


_passed: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the tests that passed in each environment."""
    if report.when == "call" and report.passed:
        _passed.update(str(value) for name, value in report.user_properties if name == _PROPERTY)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Record the run, if nothing failed; a worker of pytest-xdist leaves that to its controller."""
    if exitstatus == 0 and _passed and "PYTEST_XDIST_WORKER" not in os.environ:
        day = time.strftime("%Y-%m-%d", time.gmtime())
        write([{**json.loads(text), "tests": count, "date": day} for text, count in _passed.items()])
        session.config.get_terminal_writer().line(f"\nRecorded in {RECORD.relative_to(REPOSITORY)}")
