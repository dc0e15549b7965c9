# SPDX-License-Identifier: GPL-2.0-or-later
"""What the hook costs: for a domain that is not ours, and for one that is and has nothing to prepare.

Compared in the same run, in turns, with the bare interpreter under the hook's own flags
(``/usr/bin/python3 -IS -c pass``). Prints the median of each, in milliseconds, and the ratio.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import HOOK

ROUNDS = 101
METADATA = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='bench'/>"


def milliseconds(command: list[str], stdin: bytes) -> float:
    """Run a command once, and return how long it took."""
    began = time.perf_counter()
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    took = (time.perf_counter() - began) * 1000
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr.decode()}")
    return took


def main() -> int:
    """Measure, and print a line for each case."""
    enter_private_namespace()
    plain = domain_xml("plain", uuid=str(uuid.uuid4())).encode()
    managed = domain_xml("managed", uuid=str(uuid.uuid4()), metadata=METADATA).encode()
    hook = str(HOOK)
    cases: dict[str, tuple[list[str], bytes]] = {
        "bare interpreter": (["/usr/bin/python3", "-IS", "-c", "pass"], plain),
        "not ours, prepare": ([hook, "plain", "prepare", "begin", "-"], plain),
        "not ours, reconnect": ([hook, "plain", "reconnect", "begin", "-"], plain),
        "ours, stopped": ([hook, "managed", "stopped", "end", "-"], managed),
        "ours, release": ([hook, "managed", "release", "end", "-"], managed),
    }
    took: dict[str, list[float]] = {name: [] for name in cases}
    with Daemon():
        for _ in range(ROUNDS):
            for name, (command, stdin) in cases.items():
                took[name].append(milliseconds(command, stdin))
    bare = statistics.median(took["bare interpreter"])
    print(f"{'case':24} {'median ms':>10} {'to bare':>8}    of {ROUNDS} rounds, in turns")
    for name, figures in took.items():
        median = statistics.median(figures)
        print(f"{name:24} {median:10.1f} {median / bare:8.2f}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
