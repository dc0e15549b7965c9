# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: a booted host for each module, with the project installed, and its logs in the report of a failure.

A module says in ``MACHINE`` what its host is to be; while one module's tests run, the host of the next one boots,
where this machine has the CPUs and the memory for it.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.image import the_image
from tests.lab.machine import PATIENCE, Machine
from virt_dmem.host import memory
from virt_dmem.units import GIB

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from types import ModuleType

_HERE = Path(__file__).parent
_the_image = functools.cache(the_image)
"""The same one for a whole run, whatever is edited meanwhile."""


class _Boot:
    """A machine that boots in the background."""

    def __init__(self, module: ModuleType) -> None:
        self.machine: Machine | None = None
        self.has_told = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[dict(module.MACHINE)], daemon=True)
        self._thread.start()

    def _run(self, wanted: dict[str, Any]) -> None:
        try:
            self.machine = Machine(_the_image(), **wanted)
            self.machine.start()
        except BaseException as error:  # noqa: BLE001 -- shown to whoever waits
            self._error = error

    def get(self) -> Machine:
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self.machine is not None
        return self.machine


_boots: dict[str, _Boot] = {}
_modules: list[ModuleType] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this directory need the lab."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.needs_lab)
            item.add_marker(pytest.mark.timeout(900 * PATIENCE))
            module = item.getparent(pytest.Module)
            if module is not None and hasattr(module.obj, "MACHINE") and module.obj not in _modules:
                _modules.append(module.obj)


def _boot(module: ModuleType) -> _Boot:
    if module.__name__ not in _boots:
        _boots[module.__name__] = _Boot(module)
    return _boots[module.__name__]


def _has_room_for(wanted: Mapping[str, Any]) -> bool:
    idle = (os.cpu_count() or 1) - os.getloadavg()[0]
    return idle >= 0 and memory().available_bytes > (sum(wanted["node_gib"]) + 1) * GIB


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The module's host, up, with virt-dmem installed as 'make install' does it."""
    boot = _boot(request.module)
    try:
        machine = boot.get()
        following = _modules[_modules.index(request.module) + 1 :]
        if following and _has_room_for(following[0].MACHINE):
            _boot(following[0])
        yield machine
    finally:
        if boot.machine is not None:
            boot.machine.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the host's logs to the report of a failure."""
    report = yield
    module = item.getparent(pytest.Module)
    boot = _boots.get(module.obj.__name__) if module is not None else None
    if report.failed and boot is not None and boot.machine is not None and not boot.has_told:
        report.sections.extend(boot.machine.logs().items())
        boot.has_told = report.when == "setup"  # all tests of the module fail in the same way
    return report


def pytest_sessionfinish() -> None:
    """End what booted ahead and was not used."""
    for boot in _boots.values():
        if boot.machine is not None:
            boot.machine.close()
