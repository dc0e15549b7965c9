# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide a booted host for each module, with the project installed, and add its logs to the report of a failure.

A module that needs a kernel of its own, KVM or AppArmor describes its machine in ``MACHINE``; others have a
container. Two modules run at a time (``make lab``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.container import Container
from tests.lab.host import PATIENCE, Host
from tests.lab.image import PROJECT, Image, NoPackages, suite, the_image, the_root
from tests.lab.machine import Machine
from tests.rig import run_record
from tests.rig.hugepages_lock import hugepages_lent

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_HERE = Path(__file__).parent
HOST: pytest.StashKey[Host] = pytest.StashKey()
"""The host of a module, whose logs are added to the report of a failure."""
_where: pytest.StashKey[dict[str, str]] = pytest.StashKey()


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
        request.node.stash[HOST] = machine
        print(f"lab: booted in {machine.boot_seconds[-1]:.0f} s")
        if run_record.is_recorded(request.config):
            request.node.stash[_where] = run_record.parse("lab: a whole host", machine.run(run_record.SHOW).stdout)
        yield machine


@pytest.fixture(scope="session")
def lab_root() -> Path:
    """Provide the root of that Debian release, without the project."""
    try:
        return the_root(suite())
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def container(lab_root: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    """Provide a container that the project was installed in once it had booted, and this machine's huge pages."""
    with hugepages_lent(), Container(lab_root) as container:
        request.node.stash[HOST] = container
        container.unpack_project()
        container.run("rm /lib/modules/*/build")  # of a kernel that does not run here: no module is built for it
        container.run(
            f"make --silent -C {PROJECT} install && systemctl try-reload-or-restart libvirtd", timeout=400
        )
        yield container


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the host's logs to the report of a failure; note on what host a recorded run is."""
    module = item.getparent(pytest.Module)
    if call.when == "call" and module is not None and (where := module.stash.get(_where, None)):
        run_record.ran_on(item, where)
    report = yield
    host = module.stash.get(HOST, None) if module is not None else None
    if report.failed and host is not None:
        report.sections.extend(host.logs().items())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured, also if they passed."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.nodeid.startswith("tests/lab/") and report.capstdout:
            terminalreporter.section(report.nodeid, "-")
            terminalreporter.write_line(report.capstdout.rstrip())
