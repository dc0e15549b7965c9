# SPDX-License-Identifier: GPL-2.0-or-later
"""Test pools and extents on a real kernel with several nodes: a QEMU machine runs ``on_the_machine.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rig.numa_guest import HostNode, run_on_numa_machine

SCRIPT = Path(__file__).with_name("on_the_machine.py")
TESTS = re.findall(r"^def (test_\w+)", SCRIPT.read_text("utf-8"), re.MULTILINE)

pytestmark = pytest.mark.needs_libvirt  # for QEMU and the kernel that the rig fetches


@pytest.fixture(scope="session")
def said() -> str:
    return run_on_numa_machine(SCRIPT, [HostNode(512), HostNode(384), HostNode(256, cpus=0)])


@pytest.mark.parametrize("name", TESTS)
def test_on_a_machine_with_three_nodes(said: str, name: str) -> None:
    if f"PASSED {name} in" not in said:
        failure = re.search(rf"FAILED {name}\n(.*?)end of {name}", said, re.DOTALL)
        pytest.fail(failure[1] if failure else said, pytrace=False)
