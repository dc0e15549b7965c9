# SPDX-License-Identifier: GPL-2.0-or-later
"""Provide a private libvirtd, virt-dmemd and guests, and add their logs to the report of a failed test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig import (
    Daemon,
    GuestImage,
    PrivateLibvirt,
    RigError,
    enter_private_namespace,
    grower,
    guest_image,
    run_record,
)
from tests.rig.command import virt_dmem
from tests.rig.hugepages_lock import hugepages_lock
from tests.rig.namespace import require_private_namespace
from tests.rig.pools import create_pool

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this directory as needing libvirt, and those that work with any backend as ``any_backend``.

    The latter are those without another mark for their pool.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.needs_libvirt)
            fixtures = getattr(item, "fixturenames", ())
            if "tmpfs_pool" in fixtures and not item.get_closest_marker("needs_tmpfs"):
                item.add_marker(pytest.mark.any_backend)
            if "image" in fixtures:
                item.add_marker(pytest.mark.boots_guest)


@pytest.fixture(autouse=True)
def _noted_for_the_record(request: pytest.FixtureRequest) -> None:
    if run_record.is_recorded(request.config):
        run_record.ran_on(request.node, run_record.this_host("tests/libvirt"))


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
    """Move this process into a private mount namespace."""
    enter_private_namespace()


@pytest.fixture(scope="session")
def _session_libvirtd(rig: None) -> Iterator[PrivateLibvirt]:
    with PrivateLibvirt() as libvirtd:
        yield libvirtd


@pytest.fixture
def libvirtd(_session_libvirtd: PrivateLibvirt) -> Iterator[PrivateLibvirt]:
    """Provide a running libvirtd with the project's hook and without domains."""
    if not _session_libvirtd.libvirtd.running:
        _session_libvirtd.start()
    yield _session_libvirtd
    if not _session_libvirtd.libvirtd.running:
        _session_libvirtd.start()
    _session_libvirtd.remove()
    _session_libvirtd.clear_logs()


@pytest.fixture
def daemon(libvirtd: PrivateLibvirt) -> Iterator[Daemon]:
    """Provide a running virt-dmemd without pools, with an empty ledger, and fail if it logs an unexpected error."""
    with Daemon(forked=True) as daemon:
        yield daemon
        libvirtd.remove()  # while the hook still finds a daemon
    assert "Traceback" not in daemon.log.read_text()


@pytest.fixture(autouse=True)
def _no_state_is_left(rig: None) -> Iterator[None]:
    yield
    Daemon.wipe()


@pytest.fixture
def tmpfs_pool(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """Create the pool ``small``: 256 MiB of tmpfs, or of the backend in VIRT_DMEM_TEST_BACKEND."""
    create_pool("small")
    yield "small"
    _destroy_pool(libvirtd, daemon, "small")


@pytest.fixture
def exclusive_hugepages() -> Iterator[None]:
    """Keep other tests from counting or allocating huge pages while the test runs."""
    with hugepages_lock():
        yield


@pytest.fixture
def hugetlbfs_pool(libvirtd: PrivateLibvirt, daemon: Daemon, exclusive_hugepages: None) -> Iterator[str]:
    """Create the pool ``huge``: 128 MiB of 2 MiB pages, allocated for as long as the test runs."""
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
    """Build the guest that prints ``virt-dmem guest up``."""
    return guest_image()


@pytest.fixture(scope="session")
def grower_image(rig: None) -> GuestImage:
    """Build the guest that reports its memory size."""
    return guest_image(grower.SCRIPT, modules=grower.MODULES)


@pytest.fixture
def roomy_pool(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """Create the pool ``roomy``: 1 GiB of tmpfs."""
    virt_dmem("pool", "create", "roomy", "--backend", "tmpfs", "--size", "1G")
    yield "roomy"
    _destroy_pool(libvirtd, daemon, "roomy")
