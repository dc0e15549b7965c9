# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of figures: medians, goals, tables, comparisons. Nothing is timed here."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import fragmentation
from bench.compare import change
from bench.goals import at_least, at_most, within
from bench.results import Goal, Results, Series, ratios, spread
from bench.table import table
from tests.rig.repository import REPOSITORY

GIB = 1 << 30


def series(*rounds: float, unit: str = "s", case: str = "ours") -> Series:
    return Series("start", "virsh start", case, unit, GIB, 2, list(rounds))


def results(*rounds: float, unit: str = "s") -> Results:
    found = Results(machine={"kernel": "6.18"}, series=[series(*rounds, unit=unit)], notes=["calm"])
    at_most(found, "start", 1.15, series(1.0), series(1.0))
    return found


def compare(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.compare", *map(str, paths)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_spread_forgives_one_round_that_went_wrong() -> None:
    assert spread([1.0, 1.1, 0.9, 1.0, 50.0]) == pytest.approx(0.1)
    assert series(1.0, 1.1, 0.9, 1.0, 50.0).median == 1.0


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    found = results(1.0, 1.5, 1.25)
    found.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == found
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99"):
        Results.read(tmp_path / "results.json")


def test_rounds_of_the_same_case_go_into_one_series() -> None:
    found = Results()
    for figure in (1.0, 2.0):
        for threads in (1, 2):
            found.add("b", "w", "c", figure * threads, unit="s", threads=threads)
    assert [one.rounds for one in found.series] == [[1.0, 2.0], [2.0, 4.0]]


def test_a_goal_is_judged_by_the_rounds_ratios_not_by_the_medians() -> None:
    ours, theirs = series(1.0, 2.0, 9.0), series(1.0, 2.0, 3.0, case="theirs")
    assert ratios(ours, theirs) == [1.0, 1.0, 3.0]
    found = Results()
    at_most(found, "a", 1.15, ours, theirs)
    at_least(found, "b", 1.15, ours, theirs)
    at_most(found, "c", 1.15, ours, None)
    assert [(goal.value, goal.met) for goal in found.goals] == [(1.0, True), (1.0, False), (None, None)]


def test_a_figure_by_itself_is_judged_in_its_own_unit() -> None:
    found = Results()
    within(found, "a", 2, series(1.0, 2.0, 9.0, unit="ms"))
    within(found, "b", 2, series(3.0, unit="ms"))
    within(found, "c", 2, None)
    assert [(goal.text, goal.value, goal.met) for goal in found.goals] == [
        ("a: at most 2 ms", 2.0, True),
        ("b: at most 2 ms", 3.0, False),
        ("c", None, None),
    ]


@pytest.mark.parametrize("segments", [(128,), (64, 48, 16)])
def test_no_start_is_refused_that_would_have_fitted(segments: tuple[int, ...]) -> None:
    counted = fragmentation.run(segments, 500, random.Random(3))
    assert counted[fragmentation.REFUSED] > 10
    assert counted[fragmentation.WRONGLY] == 0


def test_the_table_has_every_series_once_with_its_goal_and_its_notes() -> None:
    found = results(0.25, 0.25, 0.5)
    found.series.append(Series("start", "hook to hook", "ours", "s", rounds=[2.0]))
    found.series.append(series(0.5, case="theirs"))
    found.goals.append(Goal("never", 1.0, 2.0, False))
    text = table(found)
    assert text.count("## start: virsh start\n") == 1
    assert "| ours | 1 GiB | 2 | 250 ms | 0 | 3 |" in text
    assert "| start: at most 1.15 x | 1.00 ± 0.00 | met |" in text
    assert "| never | 2.00 ± 0.00 | **not met** |" in text
    assert "* kernel: 6.18" in text
    assert "* calm" in text


@pytest.mark.parametrize(
    ("before", "after", "unit", "verdict"),
    [
        ((1.0, 1.01, 0.99), (1.3, 1.31, 1.29), "s", "slower"),
        ((1.0, 1.01, 0.99), (0.7, 0.71, 0.69), "s", "faster"),
        ((1.0, 1.01, 0.99), (1.3, 1.31, 1.29), "GiB/s", "faster"),
        ((1.0, 1.01, 0.99), (0.7, 0.71, 0.69), "GiB/s", "slower"),
        ((1.0, 1.0, 1.0), (1.04, 1.04, 1.04), "s", ""),  # too little to matter
        ((1.0, 1.4, 0.6), (1.3, 1.7, 0.9), "s", ""),  # no more than the rounds differ among themselves
    ],
)
def test_slower_is_what_is_beyond_noise(
    before: tuple[float, ...], after: tuple[float, ...], unit: str, verdict: str
) -> None:
    assert change(series(*before, unit=unit), series(*after, unit=unit))[1] == verdict


def test_compare_says_what_got_slower_by_its_status(tmp_path: Path) -> None:
    files = []
    for name, figure in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "results.json")
        results(figure, figure, figure).write(files[-1])
    slower = compare(*files)
    assert (slower.returncode, slower.stdout.splitlines()[-1]) == (1, "1 cases compared, 1 slower")
    assert slower.stdout.startswith("slower  +100.0%  1 -> 2 s  start: virsh start, ours 1 GiB x2")
    assert compare(tmp_path / "b", tmp_path / "a").returncode == 0
    assert compare(tmp_path / "a", tmp_path / "missing").returncode == 2
    results(1.0).write(files[1])
    assert compare(*files).returncode == 2, "one round says nothing"


def test_plots_of_the_same_results_have_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="'make test' and 'make bench' install it")
    from bench.plots import draw

    found = Results(machine={"processor": "one", "kernel": "6.18"})
    for size in (GIB, 4 * GIB):
        for case in ("pool of huge pages", "libvirt, memfd on demand"):
            for what in ("hook start to hook started", "virsh start"):
                found.add("start", what, case, 1.5, unit="s", size_bytes=size)
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (path,) = draw(found, tmp_path / name)
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]
    assert b"pool of huge pages" in drawn[0]
    assert len(drawn[0]) < 100_000
