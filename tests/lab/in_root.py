# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tests that need no booted host in the root of a Debian release: ``python -m tests.lab.in_root RELEASE``.

With that release's Python, libvirt, QEMU, compiler and libraries, and this host's kernel; further arguments are
pytest's. Its output is printed as it appears, and its exit status returned.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab.image import PROJECT, missing_for_lab, pack_tree, the_root
from tests.lab.overlay_root import OverlayRoot
from tests.rig import run_record
from tests.rig.processes import RigError

_TESTS = ("tests/unit", "tests/libvirt", "tests/numa")
_SIZE = "6g"
_GO = f"""
mount -t tmpfs tmp /tmp
rm -f /lib/modules/*/build # each 'make install' would build the module, which test_module_build does
cd {PROJECT}
tar -xf /tree.tar
make --silent setup >&2
exec .venv/bin/python -m pytest --timeout=900 --durations=10 \
"""


def run_in_root(release: str, arguments: list[str]) -> int:
    """Run pytest there with ``arguments``, by default for all of these tests; return its status.

    :raise RigError: When the root cannot be built.
    """
    chosen = arguments or ["-n", str(min(4, (os.cpu_count() or 1) + 1)), *_TESTS]
    root = the_root(release)
    with OverlayRoot(root, size=_SIZE) as there, tempfile.TemporaryDirectory() as name:
        pack_tree(Path(name) / "tree.tar")
        (there.directory / "tree.tar").write_bytes((Path(name) / "tree.tar").read_bytes())
        ours = ("VIRT_DMEM_TEST_", "PYTEST_ADDOPTS")
        settings = {name: value for name, value in os.environ.items() if name.startswith(ours)}
        env = there.environment() | {"HOME": "/root", "PYTHONUNBUFFERED": "1"} | settings
        command = there.command(_GO.strip("\n") + shlex.join(chosen))
        status = subprocess.run(command, env=env, check=False).returncode
        written = there.directory / PROJECT.lstrip("/") / run_record.RECORD.relative_to(run_record.REPOSITORY)
        if status == 0 and run_record.PLUGIN in shlex.join(chosen) + env.get("PYTEST_ADDOPTS", ""):
            run_record.write(json.loads(written.read_text("utf-8"))["runs"])
        return status


def main() -> int:
    """Run them in the release that the command line names."""
    if reason := missing_for_lab():
        print(f"This {reason}.", file=sys.stderr)
        return 1
    if len(sys.argv) < 2:
        usage = "usage: python -m tests.lab.in_root bookworm|trixie|trixie-backports [pytest's arguments]"
        print(usage, file=sys.stderr)
        return 2
    try:
        return run_in_root(sys.argv[1], sys.argv[2:])
    except RigError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
