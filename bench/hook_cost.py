# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the cost of the hook: for a domain without metadata, and for one with metadata and nothing to prepare.

A domain that is not ours is measured without rules, and beside rules of ``[[adopt]]`` that do not take it. Compared
in the same run, alternately, with a bare interpreter (``/usr/bin/python3 -IS -c pass``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from bench.alone import run_alone
from bench.goals import at_most
from bench.results import Results
from tests.rig import nova
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.namespace import enter_private_namespace
from tests.rig.private_libvirt import write_hook
from tests.rig.processes import RigError
from virt_dmem.config.schema import AdoptRule, Config, DaemonConfig
from virt_dmem.domains.adoption import write_marks

__all__ = ["seconds_of", "commands"]

NAME, WHAT = "hook", "a process from start to end"
BARE = "python3 -IS -c pass"
NOT_OURS = "not ours, prepare"
SHARED = "not ours, of shared files, prepare"
RULED = "not ours, prepare, beside rules"
RULED_SHARED = "not ours, of shared files, prepare, beside rules"
OURS = "ours, release"
RULES = (AdoptRule(flavor="dmem.*", unsuitable="refuse"), AdoptRule(domain="lab-*", unsuitable="refuse"))
METADATA = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='bench'/>"


def seconds_of(command: list[str], stdin: bytes) -> float:
    """Run a command once, and return its duration in seconds.

    :raise RigError: When it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise RigError(f"{command} failed: {done.stderr.decode()}")
    return took


def commands(scratch: Path) -> dict[str, tuple[list[str], bytes]]:
    """Return the compared cases: a command line, and its input. The hook is written to ``scratch``."""
    plain = domain_xml("plain", uuid=str(uuid.uuid4())).encode()
    shared = domain_xml("shared", uuid=str(uuid.uuid4()), memory_backing=nova.FILE_BACKED).encode()
    managed = domain_xml("managed", uuid=str(uuid.uuid4()), metadata=METADATA).encode()
    hook = str(write_hook(scratch / "hook"))
    ruled = write_hook(scratch / "ruled-hook")
    ruled.write_text(ruled.read_text().replace("/var/lib/virt-dmem/", f"{scratch}/state/"))
    write_marks(Config(daemon=DaemonConfig(state_dir=f"{scratch}/state"), adopt=RULES))
    return {
        BARE: (["/usr/bin/python3", "-IS", "-c", "pass"], plain),
        NOT_OURS: ([hook, "plain", "prepare", "begin", "-"], plain),
        SHARED: ([hook, "shared", "prepare", "begin", "-"], shared),
        RULED: ([str(ruled), "plain", "prepare", "begin", "-"], plain),
        RULED_SHARED: ([str(ruled), "shared", "prepare", "begin", "-"], shared),
        "not ours, reconnect": ([hook, "plain", "reconnect", "begin", "-"], plain),
        "ours, stopped": ([hook, "managed", "stopped", "end", "-"], managed),
        OURS: ([hook, "managed", "release", "end", "-"], managed),
    }


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure all cases."""
    enter_private_namespace()
    with Daemon(), tempfile.TemporaryDirectory() as scratch:
        compared = commands(Path(scratch))
        for number in range(arguments.rounds + 1):
            for case, (command, stdin) in compared.items():
                took = seconds_of(command, stdin)
                if number:
                    results.add(NAME, WHAT, case, took, unit="s")
    unmanaged, managed, bare = (results.find(NAME, WHAT, case) for case in (NOT_OURS, OURS, BARE))
    at_most(results, "hook: of a domain that is not ours, to a bare interpreter", 1.0, unmanaged, bare)
    at_most(results, "hook: of one that is, with nothing to prepare, to a bare interpreter", 1.0, managed, bare)


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, rounds=51))
