# SPDX-License-Identifier: GPL-2.0-or-later
"""Run tests of ``tests/libvirt`` on memory without struct pages: on the booted host, with dmemfs pools.

An emulated host takes half a minute for each of them, so by default only those of a start run, without a guest
that boots. ``LAB_LIBVIRT_TESTS`` selects others, such as ``tests/libvirt`` for all that are not about another
backend (an hour and a half); their guests run under KVM.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.lab.image import PROJECT
from tests.lab.machine import Machine

MACHINE = {"node_gib": (3, 3), "cmdline": "memmap=1G$1G memmap=1G$6G", "name": "libvirt"}
CHOSEN = os.environ.get("LAB_LIBVIRT_TESTS", "")
TESTS = CHOSEN or "tests/libvirt/test_start.py"
MARKED = "any_backend" if CHOSEN else "any_backend and not boots_guest"
SETTING = "VIRT_DMEM_TEST_BACKEND=dmemfs" + (" VIRT_DMEM_TEST_KVM=1" if CHOSEN else "")
TIMEOUT = 4 * 3600 if CHOSEN else 1500


@pytest.mark.timeout(2 * TIMEOUT)
def test_they_pass_on_it(machine: Machine) -> None:
    command = f"cd {PROJECT} && {SETTING} .venv/bin/python -m pytest -q -p no:cacheprovider {TESTS}"
    command += f" -m '{MARKED}' --timeout=1800 --tb=short --durations=10"
    done = machine.run(command, timeout=TIMEOUT, check=False)
    print(done.stdout)
    assert done.status == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
