# SPDX-License-Identifier: GPL-2.0-or-later
"""Repeat an operation with a daemon that is killed before each of its steps; ``killing`` defines a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.rig.daemon import CONFIG, Daemon

__all__ = ["killed_before_every_step", "left_in"]

MOST_STEPS = 200
"""A bound for the loops, far above the actual number."""


def left_in(pool: str) -> list[Path]:
    """Return the files of domains in a pool, and the links to any."""
    below = Path("/run/virt-dmem/pools", pool)
    links = [path for path in Path("/var/lib/libvirt/qemu/ram").rglob("*") if path.is_symlink()]
    return [*below.glob("libvirt-*"), *below.glob("libvirt-*/*"), *links]


def killed_before_every_step(
    daemon: Daemon,
    mark: Path,
    operate: Callable[[], None],
    restore: Callable[[], None],
    *,
    last: str,
    also: Sequence[str] = (),
    background: bool = False,
) -> list[str]:
    """Do ``operate`` with a daemon that is killed before its first step, its second …; return the steps.

    ``last``: the name of the last step. Numbers shift, as one run uses what the previous one pre-zeroed, and
    there are fewer if another task of the daemon did some of the work: so it is killed once more before that one,
    and before each of ``also`` (names, or their first words), that was not reached by its number. ``background``:
    steps of the daemon's own work, not of ``operate``.
    """
    plain = daemon.program.command
    order = mark.with_name(f"{mark.name}.at")
    steps: list[str] = []

    def killed_before(wanted: str) -> bool:
        mark.unlink(missing_ok=True)
        order.write_text(f"background:{wanted}" if background else wanted)
        operate()
        order.unlink(missing_ok=True)
        killed = mark.exists()
        if killed:
            steps.append(mark.read_text())
        daemon.restart()
        restore()
        return killed

    daemon.stop()
    daemon.program.command = [sys.executable, "-m", "tests.rig.killing", str(mark), "--config", str(CONFIG)]
    daemon.start()
    for number in range(MOST_STEPS):
        if not killed_before(str(number)) or steps[-1] == last:
            break
    else:
        raise AssertionError(f"more than {MOST_STEPS} steps: {steps[-5:]}")
    for name in (*also, last):
        if not any(name in (step, step.partition(" ")[0]) for step in steps):
            killed_before(name)
    daemon.program.command = plain
    daemon.restart()
    return steps
