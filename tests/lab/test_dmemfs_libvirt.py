# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of ``tests/libvirt`` on memory without struct pages: they are run on the booted host, pools are of dmemfs.

An emulated host takes half a minute for each of them, so these are the ones of a start. ``LAB_LIBVIRT_TESTS`` names
others, as ``tests/libvirt`` for all that are not about another kind of memory: hours.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.lab.image import PROJECT
from tests.lab.machine import Machine

MACHINE = {"node_gib": (3, 3), "cmdline": "memmap=1G$1G memmap=1G$6G", "name": "libvirt"}
TESTS = os.environ.get("LAB_LIBVIRT_TESTS", "tests/libvirt/test_start.py")
TIMEOUT = 1500 if "LAB_LIBVIRT_TESTS" not in os.environ else 4 * 3600


@pytest.mark.timeout(2 * TIMEOUT)
def test_they_pass_on_it(machine: Machine) -> None:
    command = f"cd {PROJECT} && VIRT_DMEM_TEST_BACKEND=dmemfs .venv/bin/python -m pytest -q -p no:cacheprovider"
    done = machine.run(f"{command} {TESTS} -m any_backend --timeout=600 --tb=short", timeout=TIMEOUT, check=False)
    print(done.stdout)
    assert done.status == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
