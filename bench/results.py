# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the results of a benchmark, round by round: in memory, and as JSON."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

__all__ = ["Results", "Series", "Goal", "ratios", "spread"]

SCHEMA = 1


def spread(figures: list[float]) -> float:
    """Return the median absolute deviation (MAD), which a few outliers do not change."""
    middle = statistics.median(figures)
    return statistics.median(abs(figure - middle) for figure in figures)


@dataclass(frozen=True)
class Series:
    """One case of one benchmark, measured in several rounds.

    ``what`` is measured, in ``unit`` ("s", "GiB/s", "MiB/GiB"), for ``case``; ``size_bytes`` of memory and
    ``threads`` are 0 where they mean nothing.
    """

    benchmark: str
    what: str
    case: str
    unit: str
    size_bytes: int = 0
    threads: int = 0
    rounds: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """The properties that identify it."""
        return self.benchmark, self.what, self.case, self.size_bytes, self.threads

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def spread(self) -> float:
        """Of all rounds."""
        return spread(self.rounds) if self.rounds else math.nan

    @property
    def more_is_better(self) -> bool:
        """Whether larger figures are better."""
        return self.unit.endswith("/s")


@dataclass(frozen=True)
class Goal:
    """A goal: ``value`` against ``limit``; ``met`` is ``None`` if it could not be judged."""

    text: str
    limit: float
    value: float | None
    met: bool | None
    spread: float = 0.0


@dataclass
class Results:
    """All results of one run; ``notes``: what a reader must know, such as what was skipped and why."""

    machine: dict[str, str] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    def add(
        self,
        benchmark: str,
        what: str,
        case: str,
        figure: float,
        *,
        unit: str,
        size_bytes: int = 0,
        threads: int = 0,
    ) -> None:
        """Add one round's figure to its series."""
        new = Series(benchmark, what, case, unit, size_bytes, threads)
        found = self.find(*new.key)
        if found is None:
            self.series.append(found := new)
        found.rounds.append(figure)

    def find(self, benchmark: str, what: str, case: str, size_bytes: int = 0, threads: int = 0) -> Series | None:
        """Return a series, or ``None`` if it was not measured."""
        key = (benchmark, what, case, size_bytes, threads)
        return next((series for series in self.series if series.key == key), None)

    def merge(self, other: Results) -> None:
        """Add the results of another part of the same run."""
        self.series += other.series
        self.goals += other.goals
        self.notes += [note for note in other.notes if note not in self.notes]
        self.seconds |= other.seconds

    def write(self, path: Path) -> None:
        """Write the results as readable JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @staticmethod
    def read(path: Path) -> Results:
        """Read a file that ``write`` wrote.

        :raise ValueError: When the file is something else.
        """
        found = msgspec.json.decode(path.read_bytes(), type=Results)
        if found.schema != SCHEMA:
            raise ValueError(f"{path} has schema {found.schema}, and this program knows {SCHEMA}")
        return found


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Return the ratio of ``ours`` to ``theirs`` for each round; both were measured alternately."""
    return [mine / other for mine, other in zip(ours.rounds, theirs.rounds, strict=False)]
