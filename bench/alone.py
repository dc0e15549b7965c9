# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one benchmark as a program: parse its options, print its results as a table or JSON."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import Others, describe
from bench.results import Results
from bench.table import table
from tests.rig.processes import RigError

__all__ = ["run_alone"]


def run_alone(
    name: str,
    document: str | None,
    measure: Callable[[Results, argparse.Namespace], None],
    *,
    rounds: int = 5,
    options: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> int:
    """Measure, and print a table or write JSON; the exit status is 1 if a goal was not met or it was aborted."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, and print no table")
    options(parser)
    arguments = parser.parse_args()
    results, others, began = Results(machine=describe()), Others(), time.monotonic()
    status = 0
    try:
        measure(results, arguments)
    except RigError as error:
        results.notes.append(f"{name} was aborted: {error}")
        status = 1
    results.notes.append(f"{name}: {others.note()}")
    results.seconds[name] = time.monotonic() - began
    if arguments.json:
        results.write(arguments.json)
    else:
        print(table(results))
    return status or int(any(goal.met is False for goal in results.goals))


if __name__ == "__main__":
    sys.exit("bench.alone is what the benchmarks have in common; run one of them")
