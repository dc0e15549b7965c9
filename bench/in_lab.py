# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a module on the lab's host, which withholds memory from its kernel: ``python -m bench.in_lab MODULE``.

Its output is printed here as it appears, and its exit status returned.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence

from tests.lab.image import PROJECT, missing_for_lab, the_image
from tests.lab.machine import Machine
from tests.rig.processes import RigError

_NODE_GIB, _HOLE_MIB = (4, 4), 1024
_LOG = "/root/bench.log"


def run_in_lab(module: str, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None) -> int:
    """Boot the lab's host, run a module of the project on it, and return its status.

    :raise RigError: When the host does not come up.
    """
    said = 0
    with Machine(the_image(), node_gib=_NODE_GIB, hole_mib=_HOLE_MIB, name="bench") as machine:
        setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items())
        command = f"{setting} PYTHONUNBUFFERED=1 .venv/bin/python -m {module} {shlex.join(arguments)}"
        machine.run(
            # not "cd … && (…) &": the shell that waits for that would keep our pipe open until it ends
            f"cd {PROJECT}; ({command} >{_LOG} 2>&1; echo $? >{_LOG}.status) </dev/null >/dev/null 2>&1 &"
        )
        ended = False
        while not ended:
            ended = machine.run(f"test -s {_LOG}.status", check=False).status == 0
            text = machine.run(f"tail -c +{said + 1} {_LOG}", check=False).stdout
            said += len(text.encode())
            print(text, end="", flush=True)
            time.sleep(0.5)
        return int(machine.run(f"cat {_LOG}.status").stdout)


def main() -> int:
    """Run the module that the command line names."""
    if reason := missing_for_lab():
        print(f"The lab {reason}.", file=sys.stderr)
        return 1
    try:
        return run_in_lab(sys.argv[1], sys.argv[2:])
    except RigError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
