# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmem list --json`` costs, cold: a process each time, as it is installed.

Compared in the same run, in turns, with the bare interpreter, under the launcher's own flags (``-IS``) and without.
Prints the median of each, in milliseconds, and the ratio to the first. The daemon runs in the private namespace
and holds memory of ten domains.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import uuid
from pathlib import Path

from bench.hook_cost import milliseconds
from tests.rig.command import virt_dmem
from tests.rig.daemon import SOCKET, Daemon
from tests.rig.domains import domain_xml
from tests.rig.launcher import write_launcher
from tests.rig.namespace import enter_private_namespace
from virt_dmem.ipc.client import Client
from virt_dmem.rewrite import apply

DOMAINS = 10


BARE = "python3 -IS -c pass"
LIST = "list --json"


def cases(directory: Path) -> dict[str, list[str]]:
    """Return what is compared; ``directory`` is for the launcher and must stay until it was measured."""
    command = str(write_launcher(directory, "virt_dmem.cli.main"))
    return {
        BARE: ["/usr/bin/python3", "-IS", "-c", "pass"],
        "python3 -c pass": ["/usr/bin/python3", "-c", "pass"],
        LIST: [command, "list", "--json"],
        "list": [command, "list"],
        "explain pool": [command, "explain", "pool"],
    }


def measure(rounds: int, cases: dict[str, list[str]]) -> dict[str, float]:
    """Return the median of each case, in milliseconds."""
    took: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, arguments in cases.items():
            took[name].append(milliseconds(arguments, b""))
    return {name: statistics.median(figures) for name, figures in took.items()}


def hold(count: int) -> None:
    """Have the daemon hold memory of so many domains."""
    virt_dmem("pool", "create", "bench", "--backend", "tmpfs", "--size", "64M")
    with Client(SOCKET) as daemon:
        for number in range(count):
            plain = domain_xml(f"bench-{number}", uuid=str(uuid.uuid4()), memory="2MiB")
            xml = apply(plain.encode(), pool="bench").decode()
            for _ in daemon.call_more("Hook", operation="prepare", xml=xml):
                pass


def main(rounds: int = 101) -> int:
    """Measure, and print a line for each case."""
    enter_private_namespace()
    with tempfile.TemporaryDirectory() as directory, Daemon('[daemon]\ngroup = "root"\n'):
        hold(DOMAINS)
        medians = measure(rounds, cases(Path(directory)))
    print(f"{'case':28} {'median ms':>10} {'to bare':>8}    of {rounds} rounds, in turns")
    for name, median in medians.items():
        print(f"{name:28} {median:10.1f} {median / medians[BARE]:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
