# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.rig.killing MARK [OPTION...]``: virt-dmemd, killed by SIGKILL right before a certain step.

The step is given in the file ``MARK.at``, by its number, its name or the first word of that; it is counted from
the next hook operation or command, which removes that file. A step is any external effect of that operation: each
commit of the ledger, each file created, removed, linked or chowned, each program run, each change requested from
libvirt, before and after it, each answer. Repeated polling while it waits is no step, nor is unrelated work of the
daemon. Steps are counted from outside, by Python's audit events and around the ledger's transactions and calls to
libvirt: the product has no code for this. With "background:" before the number or name, steps are counted from the
next background work on memory. The name of the step is written to MARK, which is not created if there were fewer
steps. With the path of a PID file in ``MARK.victim``, that process is killed instead of virt-dmemd.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
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
from virt_dmem.hypervisor import ignore_shared
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
        """Set in all of the operation, also in tasks and threads that it starts."""
        self.file = ""
        self.seen: set[str] = set()

    def arm(self, *, background: bool = False) -> None:
        """Start counting, for a requested operation or for background work."""
        if self.at is None and self.order.exists():
            of_background, _, wanted = self.order.read_text().rpartition(":")
            if background != bool(of_background):
                return
            self.order.unlink()
            self.at = int(wanted) if wanted.isdecimal() else wanted
        self.counts.set(self.at is not None)

    def step(self, what: str) -> None:
        """Kill this process if this is the step."""
        if self.counts.get():
            self.seen.clear()
        self._step(what)

    def _step(self, what: str) -> None:
        if not self.counts.get():
            return
        if self.at in (self.done, what, what.partition(" ")[0]):
            self.counts.set(False)  # the mark is no step
            self.mark.write_text(what)
            os.kill(self._victim(), signal.SIGKILL)
            self.at = None
        self.done += 1

    def _victim(self) -> int:
        named = self.mark.with_name(f"{self.mark.name}.victim")
        try:
            return int(Path(named.read_text()).read_text()) if named.exists() else os.getpid()
        except FileNotFoundError:  # it does not run now
            return subprocess.Popen(["true"]).pid

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        """Count an audit event of Python if it is a step."""
        if event not in _EVENTS or (event == "open" and not _writes(args)) or not self.counts.get():
            return
        if event == "open":
            self.file = str(args[0])
        what = f"{event} {args[0]}" if isinstance(args[0], str | Path) else f"{event} {self.file}"
        if what not in self.seen:  # else it polls the same thing again
            self.seen.add(what)
            self._step(what)


def _writes(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> int:
    """Install the killer, and run the daemon."""
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

    async def switch(*args: Any, on: bool) -> None:
        killer.step(f"before switching {'on' if on else 'off'}")
        await switch_capability(*args, on=on)
        killer.step(f"after switching {'on' if on else 'off'}")

    switch_capability, ignore_shared.switch = ignore_shared.switch, switch
    for name in ("attach", "detach", "resize", "park", "unpark", "refresh"):
        setattr(Service, name, watched(name))
    for name in ("attach", "detach", "update", "save", "restore", "resume"):
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
