# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide a booted host for each module, with the project installed, and add its logs to the report of a failure.

A module describes its host in ``MACHINE``; two modules run at a time (``make lab``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.image import Image, NoPackages, the_image
from tests.lab.machine import PATIENCE, Machine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_HERE = Path(__file__).parent
_machine: pytest.StashKey[Machine] = pytest.StashKey()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this directory as needing the lab."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.needs_lab)
            item.add_marker(pytest.mark.timeout(900 * PATIENCE))


@pytest.fixture(scope="session")
def lab_image() -> Image:
    """Provide the lab's Debian image with virt-dmem installed by 'make install'."""
    try:
        return the_image()
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def machine(lab_image: Image, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Provide the module's running host."""
    with Machine(lab_image, **request.module.MACHINE) as machine:
        request.node.stash[_machine] = machine
        print(f"lab: booted in {machine.boot_seconds[-1]:.0f} s")
        yield machine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the host's logs to the report of a failure."""
    report = yield
    module = item.getparent(pytest.Module)
    machine = module.stash.get(_machine, None) if module is not None else None
    if report.failed and machine is not None:
        report.sections.extend(machine.logs().items())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured, also if they passed."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.nodeid.startswith("tests/lab/") and report.capstdout:
            terminalreporter.section(report.nodeid, "-")
            terminalreporter.write_line(report.capstdout.rstrip())
