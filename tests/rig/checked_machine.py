# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine for the checks of ``virt-dmem check``: a directory on which nothing of virt-dmem is installed."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.rig.fake_tree import fake_process, fake_tree, put
from tests.rig.repository import REPOSITORY
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.checks.hooks import CLOCK_TICKS
from virt_dmem.native.programs import HOOK_CLIENT
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB

__all__ = [
    "HOOK",
    "HOOKS",
    "bare_machine",
    "daemon_that_served_at",
    "install_client",
    "install_hook",
    "libvirtd",
    "mounted",
    "pool",
]

HOOK = REPOSITORY / "hooks/qemu.d/50-virt-dmem"
HOOKS = "etc/libvirt/hooks"
BOOTED = 1_700_000_000


def bare_machine(root: Path) -> Machine:
    """Return a machine on which nothing of virt-dmem is installed."""
    fake_tree(root)
    put(root / "etc/passwd", "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:107:,,,:/:/bin/false\n")
    put(root / "etc/group", "root:x:0:\n")
    put(root / "proc/stat", f"cpu 0\nbtime {BOOTED}\n")
    return Machine(Config(), "test:///default", root)


def install_hook(machine: Machine, name: str = "qemu.d/50-virt-dmem", text: bytes | None = None) -> Path:
    path = machine.root / HOOKS / name
    put(path, "")
    path.write_bytes(HOOK.read_bytes().replace(b"@PREFIX@", b"/usr") if text is None else text)
    path.chmod(0o755)
    return path


def install_client(machine: Machine, program: Path | None = None) -> Path:
    """Put a copy of what the hook runs, or of something else, where it looks for it."""
    path = machine.root / "usr/bin/virt-dmem-hook"
    put(path, "")
    return Path(shutil.copy(program or HOOK_CLIENT, path))


def libvirtd(machine: Machine, started: float, pid: int = 4711) -> None:
    fake_process(machine.root, pid, comm="libvirtd")
    ticks = int((started - BOOTED) * CLOCK_TICKS)
    put(machine.root / f"proc/{pid}/stat", f"{pid} (lib virt)d) S {' '.join('0' * 18)} {ticks} 0 0\n")


def pool(machine: Machine, name: str = "p", **changes: Any) -> PoolRecord:
    """Record a tmpfs pool, and what the tree calls mounted."""
    mount = machine.root / "mnt" / name
    mount.mkdir(parents=True)
    share = {-1: NodeShare(MIB, MIB)}
    kind = backend(changes.get("backend", "tmpfs"))
    fields = {"backend": kind.name, "mount": str(mount), "state": "ready"} | changes
    record = kind.record(name=name, page_size=4096, nodes=share, **fields)
    put(machine.root / f"var/lib/virt-dmem/pools/{name}.json", msgspec.json.encode(record).decode())
    return record


def mounted(machine: Machine, *mounts: tuple[str, str, str]) -> None:
    lines = [
        f"{21 + at} 1 0:{30 + at} / {path} rw - {kind} none {options}"
        for at, (path, kind, options) in enumerate(mounts)
    ]
    put(machine.root / "proc/self/mountinfo", "\n".join(lines) + "\n")


@contextmanager
def daemon_that_served_at(at: float, path: Path) -> Iterator[None]:
    """A fake: something that answers ListDomains, then ShowDomain, as virt-dmemd would after a start."""
    domain = {"uuid": "guest", "since": at, "steps": [{"step": "prepare", "at": at, "seconds": 0.1}]}
    answers = {"domains": [domain | {"steps": []}]}, {"domain": domain}
    with socket.socket(socket.AF_UNIX) as listener:
        path.parent.mkdir(parents=True)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            caller, _ = listener.accept()
            with caller:
                for answer in answers:
                    if caller.recv(65536):
                        caller.sendall(json.dumps({"parameters": answer}).encode() + b"\0")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
