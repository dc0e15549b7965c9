# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmem list --json`` costs, cold: a process each time, as it is installed.

Compared in the same run, in turns, with the bare interpreter, under the launcher's own flags (``-IS``) and without.
The daemon runs in the private namespace and holds memory of ten domains.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import uuid
from pathlib import Path

from bench.alone import run_alone
from bench.goals import at_most
from bench.hook_cost import BARE, seconds_of
from bench.results import Results
from tests.rig.command import virt_dmem
from tests.rig.daemon import SOCKET, Daemon
from tests.rig.domains import domain_xml
from tests.rig.launcher import write_launcher
from tests.rig.namespace import enter_private_namespace
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.ipc.client import Client

__all__ = ["BARE", "LIST", "cases", "hold", "measure_rounds"]

NAME, WHAT = "list", "a process from start to end"
DOMAINS = 10
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


def measure_rounds(results: Results, rounds: int, compared: dict[str, list[str]]) -> None:
    """Run each so many times, in turns."""
    for number in range(rounds + 1):
        for case, command in compared.items():
            took = seconds_of(command, b"")
            if number:
                results.add(NAME, WHAT, case, took, unit="s")


def hold(count: int) -> None:
    """Have the daemon hold memory of so many domains."""
    virt_dmem("pool", "create", "bench", "--backend", "tmpfs", "--size", "64M")
    with Client(SOCKET) as daemon:
        for number in range(count):
            plain = domain_xml(f"bench-{number}", uuid=str(uuid.uuid4()), memory="2MiB")
            xml = apply(plain.encode(), pool="bench").decode()
            for _ in daemon.call_more("Hook", operation="prepare", xml=xml):
                pass


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all cases."""
    enter_private_namespace()
    with tempfile.TemporaryDirectory() as directory, Daemon('[daemon]\ngroup = "root"\n'):
        hold(DOMAINS)
        measure_rounds(results, arguments.rounds, cases(Path(directory)))
    ours, bare = (results.find(NAME, WHAT, case) for case in (LIST, BARE))
    at_most(results, "list: 'list --json' of ten domains to a bare interpreter", 3.0, ours, bare)


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, rounds=51))
