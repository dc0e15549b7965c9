# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.rig.killing MARK [OPTION...]``: virt-dmemd, killed by SIGKILL right before a certain step.

Which one, its number, its name or the first word of that, is written to the file ``MARK.at``; it counts from
the next hook operation or command that is served, which takes that file away. A step is anything that operation
does to the world: each commit of the ledger, each file made, removed, linked or given away, each program run,
each change that libvirt is asked for, before and after it, each answer. What only looks again, while it waits,
is no step, nor is what the daemon does besides. Steps are counted from outside, by Python's audit events and
around the ledger's transactions and what asks libvirt: the product knows nothing of this. "background:" before
the number or name: it counts from the next work on memory that nobody asked for. What the step was is written
to MARK, which is not made when fewer steps were done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.daemon.main import main as run_daemon
from virt_dmem.daemon.service import Service
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.pools import prezeroed_files

_EVENTS = {"open", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.chmod", "os.chown", "os.truncate",
           "os.rename", "subprocess.Popen"}  # fmt: skip


class _Killer:
    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.order = mark.with_name(f"{mark.name}.at")
        self.at: int | str | None = None
        self.done = 0
        self.counts: ContextVar[bool] = ContextVar("counts", default=False)
        """In all that the operation does, also in tasks and threads it starts."""
        self.file = ""
        self.seen: set[str] = set()

    def arm(self, *, background: bool = False) -> None:
        """Begin to count, if that is targets of what is asked for, or of what goes on in the background."""
        if self.at is None and self.order.exists():
            of_background, _, wanted = self.order.read_text().rpartition(":")
            if background != bool(of_background):
                return
            self.order.unlink()
            self.at = int(wanted) if wanted.isdecimal() else wanted
        self.counts.set(self.at is not None)

    def step(self, what: str) -> None:
        """Be killed if it is this step's turn."""
        if self.counts.get():
            self.seen.clear()
        self._step(what)

    def _step(self, what: str) -> None:
        if not self.counts.get():
            return
        if self.at in (self.done, what, what.partition(" ")[0]):
            self.counts.set(False)  # the mark is no step
            self.mark.write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)
        self.done += 1

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        """Take an audit event of Python for a step, if it is one."""
        if event not in _EVENTS or (event == "open" and not _writes(args)) or not self.counts.get():
            return
        if event == "open":
            self.file = str(args[0])
        what = f"{event} {args[0]}" if isinstance(args[0], str | Path) else f"{event} {self.file}"
        if what not in self.seen:  # else it looks at the same thing again
            self.seen.add(what)
            self._step(what)


def _writes(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> int:
    """Install the killer, and be the daemon."""
    killer = _Killer(Path(sys.argv[1]))

    transaction = Ledger._transaction

    @contextmanager
    def counted(self: Ledger) -> Iterator[object]:
        killer.step("ledger transaction")
        with transaction(self) as database:
            yield database
            killer.step("ledger commit")

    async def hook(self: Service, operation: str, *args: object) -> object:
        killer.arm()
        try:
            return await serve(self, operation, *args)  # type: ignore[arg-type]
        finally:
            killer.step(f"answer to {operation}")

    def watched(name: str) -> Callable[..., Awaitable[object]]:
        method = getattr(Service, name)

        async def change(self: Service, *args: object, **more: object) -> object:
            killer.arm()
            try:
                return await method(self, *args, **more)
            finally:
                killer.step(f"answer to {name}")

        return change

    def chunk(self: PrezeroWorker, *args: Any) -> asyncio.Task[None]:
        killer.arm(background=True)
        return start_chunk(self, *args)

    async def chunk_is_done(self: PrezeroWorker, *args: Any) -> bool:
        try:
            return await finish_chunk(self, *args)
        finally:
            killer.step("a chunk is done")

    def creating(*args: Any) -> prezeroed_files.PrezeroedExtent | None:
        killer.arm(background=True)
        return create(*args)

    def around(name: str) -> Callable[..., None]:
        method = getattr(Hypervisor, name)

        def asked(self: Hypervisor, *args: object, **more: object) -> None:
            killer.step(f"before libvirt's {name}")
            method(self, *args, **more)
            killer.step(f"after libvirt's {name}")

        return asked

    for name in ("attach", "detach", "resize"):
        setattr(Service, name, watched(name))
    for name in ("attach", "detach", "update"):
        setattr(Hypervisor, name, around(name))
    serve, create = Service.hook, prezeroed_files.create
    start_chunk, finish_chunk = PrezeroWorker._start_chunk, PrezeroWorker._finish_chunk
    Ledger._transaction = counted  # type: ignore[assignment,method-assign]
    Service.hook = hook  # type: ignore[assignment,method-assign]
    PrezeroWorker._start_chunk = chunk  # type: ignore[method-assign]
    PrezeroWorker._finish_chunk = chunk_is_done  # type: ignore[method-assign]
    prezeroed_files.create = creating
    sys.addaudithook(killer.audit)
    return run_daemon(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
