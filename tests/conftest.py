# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test needs, and what happens where it is not there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.lab.image import missing_for_lab
from tests.rig import missing_for_rig


def _missing_for_hugepages() -> str:
    if os.geteuid() != 0:
        return "needs root"
    return "" if Path("/sys/kernel/mm/hugepages").is_dir() else "needs a kernel with hugetlbfs"


_NEEDS = {"needs_libvirt": missing_for_rig, "needs_hugepages": _missing_for_hugepages, "needs_lab": missing_for_lab}


hypothesis.settings.register_profile("virt-dmem", deadline=None)  # how long an example takes is no matter
hypothesis.settings.load_profile("virt-dmem")


def pytest_configure() -> None:
    """Take Ctrl-C again where we were started with it ignored, as a shell does in the background.

    What the tests start inherits that, and some are about Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, with the reason; fail it where all is said to be there, as in CI."""
    for marker, missing in _NEEDS.items():
        if item.get_closest_marker(marker) and (reason := missing()):
            if os.environ.get("VIRT_DMEM_TEST_ALL") == "1":
                pytest.fail(f"VIRT_DMEM_TEST_ALL=1, but this test {reason}", pytrace=False)
            pytest.skip(reason)
