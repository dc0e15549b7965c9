# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.rig.killing N MARK [OPTION...]``: virt-dmemd, killed by SIGKILL right before its N-th step.

A step is anything it does to the world once it serves its first hook operation or command: each commit of the
ledger, each file made, removed, linked or given away, each program run, each answer. Steps are counted from
outside, by Python's audit events and around the ledger's transactions: the product knows nothing of this. What
the step was is written to the file MARK, which does not exist when fewer than N steps were done.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virt_dmem import daemon
from virt_dmem.ledger import Ledger
from virt_dmem.service import Service

_EVENTS = {"open", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.chmod", "os.chown", "os.truncate",
           "os.rename", "subprocess.Popen"}  # fmt: skip


class _Killer:
    def __init__(self, at: int, mark: Path) -> None:
        self.at = at
        self.mark = mark
        self.done = 0
        self.armed = False

    def step(self, what: str) -> None:
        if not self.armed:
            return
        if self.done == self.at:
            self.armed = False  # the mark is no step
            self.mark.write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)
        self.done += 1

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        if event not in _EVENTS or (event == "open" and not _writes(args)):
            return
        self.step(f"{event} {args[0]}")


def _writes(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> int:
    """Install the killer, and be the daemon."""
    killer = _Killer(int(sys.argv[1]), Path(sys.argv[2]))

    transaction = Ledger._transaction

    @contextmanager
    def counted(self: Ledger) -> Iterator[object]:
        killer.step("ledger transaction")
        with transaction(self) as database:
            yield database
            killer.step("ledger commit")

    async def hook(self: Service, operation: str, *args: object) -> object:
        killer.armed = True
        try:
            return await serve(self, operation, *args)  # type: ignore[arg-type]
        finally:
            killer.step(f"answer to {operation}")

    serve = Service.hook
    Ledger._transaction = counted  # type: ignore[assignment,method-assign]
    Service.hook = hook  # type: ignore[assignment,method-assign]
    sys.addaudithook(killer.audit)
    return daemon.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
