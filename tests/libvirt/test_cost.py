# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify the speed of frequent operations. No libvirtd runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.list_cost import BARE, LIST, NAME, WHAT, cases, hold, measure_rounds
from bench.results import Results
from tests.rig.daemon import Daemon


@pytest.mark.alone
def test_list_json_costs_less_than_three_bare_interpreters(rig: None, tmp_path: Path) -> None:
    with Daemon('[daemon]\ngroup = "root"\n'):
        hold(3)
        compared = {name: command for name, command in cases(tmp_path).items() if name in (BARE, LIST)}
        ratios = []
        for _ in range(10):  # the machine may be busy; the best round counts
            measure_rounds(results := Results(), 21, compared)
            ours, bare = (results.find(NAME, WHAT, case) for case in (LIST, BARE))
            assert ours
            assert bare
            ratios.append(ours.median / bare.median)
            if ratios[-1] < 3:
                return
    raise AssertionError(f"ratios of the medians: {ratios}")
