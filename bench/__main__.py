# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the benchmarks on this machine: ``make bench``, or one of them with ``make bench BENCH=start``.

Each runs as a separate program, one after another. All results are written to one directory:
``results.json`` with every round, ``results.md`` with medians and spread, and plots as SVG. The exit status is 0
if every goal that could be judged was met, 1 if one was not or a benchmark was aborted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import describe
from bench.results import Results
from bench.table import table
from tests.rig.hugepages_lock import hugepages_lock

BENCHMARKS = {
    "prefault": "bench.prefault",
    "cleaning": "bench.cleaning",
    "start": "bench.start_path",
    "adopted": "bench.adopted",
    "hook": "bench.hook_cost",
    "list": "bench.list_cost",
    "attach": "bench.attach",
    "memory-lost": "bench.memory_lost",
    "scale": "bench.scale",
    "crowd": "bench.crowd",
    "fragmentation": "bench.fragmentation",
}
"""By their names for BENCH=, in the order in which they run."""


def run_one(name: str, rounds: int | None) -> Results:
    """Run one benchmark; if it ends without results, record that in a note."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "results.json")
        command = [sys.executable, "-m", BENCHMARKS[name], "--json", str(file)]
        if rounds is not None:
            command += ["--rounds", str(rounds)]
        status = subprocess.run(command, check=False).returncode
        if file.exists():
            return Results.read(file)
        return Results(notes=[f"{name} broke off with status {status}"])


def main() -> int:
    """Run the requested benchmarks, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds that count (default: each benchmark's own)")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="directory (default: %(default)s)")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        print("The benchmarks need root: sudo make bench", file=sys.stderr)
        return 1
    results = Results(machine=describe())
    with hugepages_lock():
        for name in names:
            print(f"bench: {name} …", file=sys.stderr, flush=True)
            results.merge(run_one(name, arguments.rounds))
    arguments.out.mkdir(parents=True, exist_ok=True)
    results.write(arguments.out / "results.json")
    text = table(results)
    (arguments.out / "results.md").write_text(text + "\n")
    print(text)
    _draw(results, arguments.out)
    broke_off = any("broke off" in note for note in results.notes)
    return int(broke_off or any(goal.met is False for goal in results.goals))


def _draw(results: Results, directory: Path) -> None:
    try:
        from bench.plots import draw  # noqa: PLC0415 - installed by 'make bench' only
    except ModuleNotFoundError as error:
        print(f"bench: no plots: {error}; 'make bench' installs it", file=sys.stderr)
        return
    for path in draw(results, directory):
        print(f"bench: {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
