# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask systemd when the state of a unit changed."""

from __future__ import annotations

import subprocess
import time

__all__ = ["reloaded_at"]

_SECONDS = 10


def reloaded_at(unit: str, pid: int) -> float | None:
    """Return when the state of a service last changed, in seconds since the epoch: when it started or was reloaded.

    ``ExecReload=`` ends in a change of the state from *reloading* to *active* (``StateChangeTimestampMonotonic`` in
    org.freedesktop.systemd1(5)).

    :param pid: Its main process.
    :return: ``None`` where systemd does not know the unit, or runs another process for it.
    """
    properties = "--property=MainPID,StateChangeTimestampMonotonic"
    try:
        done = subprocess.run(
            ["systemctl", "show", properties, "--", unit],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    microseconds = found.get("StateChangeTimestampMonotonic", "")
    if found.get("MainPID") != str(pid) or not microseconds.isdecimal():
        return None
    return time.time() - time.monotonic() + int(microseconds) / 1e6
