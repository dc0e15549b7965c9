# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare two runs of the benchmarks, and report what became slower beyond noise.

``python -m bench.compare A B``, where A and B are the JSON files of two runs, or their directories. A case became
slower if its median got worse by more than 5 %, and by more than three times the uncertainty of both medians. The
exit status is 1 if any case did, 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from bench.results import Results, Series
from virt_dmem.units import format_size

__all__ = ["change", "main", "uncertainty"]

LEAST_SHARE = 0.05
SIGMAS = 3.0
LEAST_ROUNDS = 3


def uncertainty(series: Series) -> float:
    """Return the standard error of a median, from the spread: MAD is 0.6745 of a normal distribution's sigma."""
    return 1.2533 * series.spread / 0.6745 / math.sqrt(len(series.rounds))


def change(before: Series, after: Series) -> tuple[float, str]:
    """Return the relative change of the median (0.1: 10 % larger), and "slower", "faster" or "" for noise."""
    share = after.median / before.median - 1
    noise = SIGMAS * math.hypot(uncertainty(before), uncertainty(after))
    if abs(share) <= LEAST_SHARE or abs(after.median - before.median) <= noise:
        return share, ""
    return share, "faster" if (share > 0) == before.more_is_better else "slower"


def main() -> int:
    """Compare, print a line for each case, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    arguments = parser.parse_args()
    try:
        before, after = (
            Results.read(path / "results.json" if path.is_dir() else path)
            for path in (arguments.before, arguments.after)
        )
    except (OSError, ValueError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    for name in sorted(before.machine.keys() | after.machine.keys()):
        old, new = before.machine.get(name, "-"), after.machine.get(name, "-")
        if old != new:
            print(f"different {name}: {old}; {new}")
    slower = compared = 0
    for old_series in before.series:
        new_series = after.find(*old_series.key)
        if new_series is None or min(len(old_series.rounds), len(new_series.rounds)) < LEAST_ROUNDS:
            continue
        compared += 1
        share, verdict = change(old_series, new_series)
        slower += verdict == "slower"
        size = f" {format_size(old_series.size_bytes)}" if old_series.size_bytes else ""
        threads = f" x{old_series.threads}" if old_series.threads else ""
        name = f"{old_series.benchmark}: {old_series.what}, {old_series.case}{size}{threads}"
        print(
            f"{verdict:7} {share:+7.1%}  {old_series.median:.4g} -> {new_series.median:.4g} {old_series.unit}"
            f"  {name}"
        )
    print(f"{compared} cases compared, {slower} slower")
    return 2 if not compared else int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
