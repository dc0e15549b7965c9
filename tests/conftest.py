# SPDX-License-Identifier: GPL-2.0-or-later
"""Skip tests whose requirements are missing, and distribute the others to workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.lab.image import missing_for_lab
from tests.rig import missing_for_rig
from tests.rig.workers import ByGroup, HostLock, write_groups

if TYPE_CHECKING:
    from collections.abc import Generator


def _missing_for_hugepages() -> str:
    if os.geteuid() != 0:
        return "needs root"
    return "" if Path("/sys/kernel/mm/hugepages").is_dir() else "needs a kernel with hugetlbfs"


_HERE = Path(__file__).parent
_NEEDS = {"needs_libvirt": missing_for_rig, "needs_hugepages": _missing_for_hugepages, "needs_lab": missing_for_lab}


hypothesis.settings.register_profile(  # the duration of an example does not matter
    "virt-dmem", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("virt-dmem")

_host_lock: pytest.StashKey[HostLock] = pytest.StashKey()


def pytest_configure() -> None:
    """Take Ctrl-C again where we were started with it ignored, as a shell does in the background.

    What the tests start inherits that, and some are about Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests/unit, as the others enter a mount namespace for good, and then with the large groups."""
    items.sort(key=_order_of)  # and else as they are


def _directory_of(item: pytest.Item) -> str:
    return item.path.relative_to(_HERE).parts[0] if _HERE in item.path.parents else ""


def _group_of(item: pytest.Item) -> str:
    """Define which tests stay together on one worker; the others are distributed freely.

    Those of a file may share an expensive fixture. Those that take huge pages, of which a host has one stock,
    would wait for each other.
    """
    directory = _directory_of(item)
    if item.get_closest_marker("needs_hugepages"):
        return f"huge pages, {directory}"
    return item.path.stem if directory in ("unit", "numa", "lab") else ""


def _order_of(item: pytest.Item) -> tuple[bool, bool, bool]:
    return _directory_of(item) != "unit", item.get_closest_marker("alone") is not None, not _group_of(item)


def _of_this_run(config: pytest.Config) -> Path:
    """Return a directory that all workers of a run have, and its controller."""
    own: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByGroup | None:
    """Distribute by group, unless another way is asked for."""
    return ByGroup(config, log, _of_this_run(config)) if config.getoption("dist") == "load" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Share the lock with the other workers of this run, if there are any."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        directory = _of_this_run(session.config)
        write_groups(
            directory, worker, {item.nodeid: group for item in session.items if (group := _group_of(item))}
        )
        session.config.stash[_host_lock] = HostLock(directory)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold the host's lock during each test, exclusively if it is ``alone``; the test's time begins afterwards."""
    host = item.config.stash.get(_host_lock, None)
    if host is None:
        return (yield)
    with host.held(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, with the reason; fail it where everything has to be there, as in CI."""
    for marker, missing in _NEEDS.items():
        if item.get_closest_marker(marker) and (reason := missing()):
            if os.environ.get("VIRT_DMEM_TEST_ALL") == "1":
                pytest.fail(f"VIRT_DMEM_TEST_ALL=1, but this test {reason}", pytrace=False)
            pytest.skip(reason)
