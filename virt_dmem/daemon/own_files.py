# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the files in the state directory that only virt-dmemd writes, and write again what somebody removed."""

from __future__ import annotations

from collections.abc import Iterator

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.alert_codes import LEDGER_LOST
from virt_dmem.monitoring.watch.base import Deviation, Look, Sight
from virt_dmem.runtime.aio import in_loop

__all__ = ["own_files"]


def own_files(config: Config, ledger: Ledger) -> Look:
    """Return what yields a deviation if the ledger's file is not the one that is open; for the event loop."""
    repair = in_loop(ledger.write_again)

    def deviations(sight: Sight) -> Iterator[Deviation]:
        del sight
        if lost := ledger.lost():
            yield Deviation(
                LEDGER_LOST,
                str(config.ledger_path),
                f"The ledger {config.ledger_path} {lost}: what is recorded now is lost when virt-dmemd ends.",
                "Run 'systemctl restart virt-dmemd'; running guests are found by their files.",
                # whoever put another file there may mean it
                repair=repair if lost == "was removed" else None,
            )

    return deviations
