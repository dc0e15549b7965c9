# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of hook operations in the ledger."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.domains.step_times import StepTimes


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", "boot-1")


def steps(ledger: Ledger) -> list[str]:
    return [step.step for step in ledger.steps("guest")]


def test_the_steps_of_an_operation_are_written_together_at_its_end(ledger: Ledger) -> None:
    times = StepTimes(ledger)
    with times.operation("guest", "prepare", began=time.time() - 1):
        with times.step("guest", "plan"):
            pass
        assert steps(ledger) == []
    assert steps(ledger) == ["prepare: hook", "plan", "prepare"]
    assert ledger.steps("guest")[0].seconds == pytest.approx(1, abs=0.5)


def test_an_operation_that_fails_writes_no_steps(ledger: Ledger) -> None:
    times = StepTimes(ledger)
    with pytest.raises(ValueError, match="failed"), times.operation("guest", "prepare"):
        raise ValueError("failed")
    with times.step("guest", "later"):
        pass
    assert steps(ledger) == ["later"]


@pytest.mark.parametrize("ago", [-5, 2 * 3600])
def test_a_start_of_the_hook_that_cannot_be_is_ignored(ledger: Ledger, ago: float) -> None:
    with StepTimes(ledger).operation("guest", "start", began=time.time() - ago):
        pass
    assert steps(ledger) == ["start"]
