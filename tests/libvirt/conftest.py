# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: a libvirtd, a virt-dmemd and a guest of our own, and their logs in the report of a failed test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig import Daemon, GuestImage, PrivateLibvirt, RigError, enter_private_namespace, grower, guest_image
from tests.rig.command import virt_dmem
from tests.rig.hugepages_lock import hugepages_lock
from tests.rig.namespace import require_private_namespace
from tests.rig.pools import create_pool

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this directory need libvirt; ``any_backend`` are those whose pool may be of any kind.

    That is so where a test does not say otherwise.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.needs_libvirt)
            fixtures = getattr(item, "fixturenames", ())
            if "tmpfs_pool" in fixtures and not item.get_closest_marker("needs_tmpfs"):
                item.add_marker(pytest.mark.any_backend)
            if "image" in fixtures:
                item.add_marker(pytest.mark.boots_guest)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs to the report of a failure."""
    report = yield
    if report.failed:
        try:
            require_private_namespace()
        except RigError:
            return report
        report.sections.extend(PrivateLibvirt.logs().items())
    return report


@pytest.fixture(scope="session")
def rig() -> None:
    """From here on, this process is in a mount namespace of its own."""
    enter_private_namespace()


@pytest.fixture(scope="session")
def _session_libvirtd(rig: None) -> Iterator[PrivateLibvirt]:
    with PrivateLibvirt() as libvirtd:
        yield libvirtd


@pytest.fixture
def libvirtd(_session_libvirtd: PrivateLibvirt) -> Iterator[PrivateLibvirt]:
    """A libvirtd that runs, has the project's hook and knows no domain."""
    if not _session_libvirtd.libvirtd.running:
        _session_libvirtd.start()
    yield _session_libvirtd
    if not _session_libvirtd.libvirtd.running:
        _session_libvirtd.start()
    _session_libvirtd.remove()
    _session_libvirtd.clear_logs()


@pytest.fixture
def daemon(libvirtd: PrivateLibvirt) -> Iterator[Daemon]:
    """A virt-dmemd that runs, with no pool and an empty ledger, and meets nothing that it does not expect."""
    with Daemon(forked=True) as daemon:
        yield daemon
        libvirtd.remove()  # while the hook still finds somebody to answer
    assert "Traceback" not in daemon.log.read_text()


@pytest.fixture(autouse=True)
def _no_state_is_left(rig: None) -> Iterator[None]:
    yield
    Daemon.wipe()


@pytest.fixture
def tmpfs_pool(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """The pool ``small``: 256 MiB of tmpfs, or of what VIRT_DMEM_TEST_BACKEND names."""
    create_pool("small")
    yield "small"
    _destroy_pool(libvirtd, daemon, "small")


@pytest.fixture
def exclusive_hugepages() -> Iterator[None]:
    """Nobody else who asks counts or takes huge pages while the test runs."""
    with hugepages_lock():
        yield


@pytest.fixture
def hugetlbfs_pool(libvirtd: PrivateLibvirt, daemon: Daemon, exclusive_hugepages: None) -> Iterator[str]:
    """The pool ``huge``: 128 MiB of 2 MiB pages, taken from the host for as long as the test runs."""
    virt_dmem("pool", "create", "huge", "--size", "128M", "--page-size", "2M")
    yield "huge"
    _destroy_pool(libvirtd, daemon, "huge")


def _destroy_pool(libvirtd: PrivateLibvirt, daemon: Daemon, name: str) -> None:
    if not daemon.program.running:
        daemon.start()
    if not libvirtd.libvirtd.running:
        libvirtd.start()
    libvirtd.remove()
    virt_dmem("reconcile")
    virt_dmem("pool", "destroy", name)


@pytest.fixture(scope="session")
def image(rig: None) -> GuestImage:
    """The guest that says ``virt-dmem guest up``."""
    return guest_image()


@pytest.fixture(scope="session")
def grower_image(rig: None) -> GuestImage:
    """The guest that says what memory it has."""
    return guest_image(grower.SCRIPT, modules=grower.MODULES)


@pytest.fixture
def roomy_pool(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """The pool ``roomy``: 1 GiB of tmpfs."""
    virt_dmem("pool", "create", "roomy", "--backend", "tmpfs", "--size", "1G")
    yield "roomy"
    _destroy_pool(libvirtd, daemon, "roomy")
