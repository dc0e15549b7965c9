# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that others have not changed what pools and guests rely on: the same table that virt-dmemd watches."""

from __future__ import annotations

from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.table import WATCHES
from virt_dmem.pools.backends.checks import Result, failed, passed

__all__ = ["unchanged"]


def unchanged(machine: Machine) -> Result:
    """Check that the host is as recorded."""
    complete = [record for record in machine.records() if record.state == "ready"]
    sight = Sight(machine.own_config(), complete, machine.root)
    compared = [watch for watch in WATCHES if watch.recorded]
    found = [deviation for watch in compared for deviation in watch.new()(sight)]
    if found:
        hints = dict.fromkeys(deviation.hint for deviation in found)
        return failed(" ".join(deviation.message for deviation in found), " ".join(hints))
    return passed(f"As recorded: {', '.join(watch.subject for watch in compared)}.")
