# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the ``virt-dmem`` command as an operator runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.rig.answers import require_documented
from tests.rig.daemon import SOCKET
from tests.rig.keeper import keeper
from tests.rig.processes import RigError
from virt_dmem.ipc.client import Client

__all__ = ["ask", "checked", "reserved", "virt_dmem", "virt_dmem_fails", "virt_dmem_json"]

_COMMAND = str(Path(sys.executable).with_name("virt-dmem"))


def _run(args: tuple[str | Path, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    words = [*map(str, args)]
    if forker := keeper():  # ten times as fast, and there are thousands
        return forker.run([sys.executable, "-m", "virt_dmem.cli.main", *words], stdin, timeout=300)
    return subprocess.run([_COMMAND, *words], input=stdin, capture_output=True, timeout=300, check=False)


def virt_dmem(*args: str | Path, stdin: bytes = b"") -> str:
    """Run ``virt-dmem`` and return its standard output.

    :raise RigError: When it fails; with its output.
    """
    done = _run(args, stdin)
    if done.returncode:
        raise RigError(f"virt-dmem {' '.join(map(str, args))}: status {done.returncode}: {done.stderr.decode()}")
    return done.stdout.decode()


def virt_dmem_json(*args: str | Path) -> Any:
    """Run ``virt-dmem --json`` and return its output, decoded and verified against the documentation."""
    return require_documented([*map(str, args), "--json"], virt_dmem(*args, "--json"))


def checked() -> dict[str, dict[str, str]]:
    """Return the results of ``check`` by name; in a private namespace some check always fails."""
    found = require_documented(["check", "--json"], _run(("check", "--json"), b"").stdout.decode())["checks"]
    return {check["name"]: check for check in found}


def ask(method: str, **parameters: object) -> dict[str, Any]:
    """Call virt-dmemd directly, for tests that do so hundreds of times: the command takes 0.2 s to start."""
    with Client(SOCKET) as daemon:
        return daemon.call(method, **parameters)


def virt_dmem_fails(*args: str | Path, status: int, stdin: bytes = b"") -> str:
    """Run ``virt-dmem``, expecting exit status ``status``, and return its standard error.

    :raise RigError: When it exits with another status.
    """
    done = _run(args, stdin)
    if done.returncode != status:
        said = (done.stdout + done.stderr).decode()
        raise RigError(f"virt-dmem {' '.join(map(str, args))}: status {done.returncode}, not {status}: {said}")
    return done.stderr.decode()


def reserved(pool: str) -> int:
    """Return the charged bytes of a pool."""
    return int(virt_dmem_json("pool", "show", pool)["pool"]["reserved_bytes"])
