# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem show``: tables of one domain."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from tests.rig.command_line import Command
from virt_dmem.errors import ExitStatus

DOMAIN = {
    "uuid": "11111111-2222-3333-4444-555555555555",
    "name": "guest",
    "phase": "running",
    "since": 0.0,
    "reserved_bytes": 4096,
    "extents": [
        {"alias": "ram0", "pool": "p", "size_bytes": 4096, "page_size": 4096, "nodes": [0, 1], "state": "ready"}
        | {"path": "/p/ram0", "policy": "none"}
    ],
    "steps": [
        {"step": "prepare: hook", "at": 0.0, "seconds": 0.01},
        {"step": "populate pc.ram", "at": 0.0, "seconds": 0.2},
        {"step": "prepare", "at": 0.0, "seconds": 0.25},
        {"step": "release", "at": 0.0, "seconds": 9.0},
    ],
}
BACKEND = {"id": "ram0", "kind": "file", "path": "", "size_bytes": 4096, "policy": "bind", "host_nodes": [0]}


class Daemon:
    """A fake of virt-dmemd."""

    def call(self, method: str, **_: object) -> dict[str, Any]:
        backends = [BACKEND | {"id": name, "preallocated": False, "shared": True} for name in ("ram0", "shm")]
        return {"domain": dict(DOMAIN)} if method == "ShowDomain" else {"backends": backends}


def test_a_domain_is_shown_extent_by_extent(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(Daemon()))
    said = command("show", "guest", "--timing").splitlines()
    assert said[0] == "guest (11111111-2222-3333-4444-555555555555)"
    assert said[1].endswith("holds 4 KiB")
    assert "ram0   p     4 KiB  4 KiB  0,1    ready  /p/ram0" in said
    assert "Reported by QEMU:" in said
    header = next(line for line in said if line.startswith("BACKEND"))
    rows = [line for line in said[said.index(header) + 1 :] if line.startswith(("ram0", "shm"))]
    assert [line[header.index("POOL") :].split()[0] for line in rows] == ["yes", "no"]
    assert said[-4].split()[1:] == ["0.250", "prepare"]
    assert said[-1] == "The hooks of its start took 0.260 s in all."


def test_an_unknown_domain_is_named(command: Command) -> None:
    with command.daemon():
        assert "has no domain 'ghost'" in command("show", "ghost", status=ExitStatus.FAILED)
        assert "Did you mean 'test'?" in command("show", "tset", status=ExitStatus.FAILED)
        assert "Domain test runs on ordinary memory" in command("show", "test", status=ExitStatus.FAILED)
