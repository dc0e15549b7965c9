# SPDX-License-Identifier: GPL-2.0-or-later
"""Post-copy migration to memory without struct pages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.domains import postcopy
from virt_dmem.errors import DomainRefused


@pytest.mark.parametrize(
    ("capabilities", "why"),
    [
        ({"postcopy-ram"}, "is about to arrive by post-copy"),
        (None, "Neither QEMU nor libvirt tells whether"),
        (set(), ""),
    ],
)
@in_own_mount_namespace
def test_it_is_refused_unless_qemu_says_that_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: set[str] | None, why: str
) -> None:
    parts = Parts(tmp_path)
    asyncio.run(parts.hooks.prepare(memory(MIB), lambda _: None))

    async def answer(_uuid: str, _pid: int) -> set[str] | None:
        return capabilities

    monkeypatch.setattr(postcopy, "migration_capabilities", answer)
    monkeypatch.setattr(postcopy, "find_qemu", lambda *_: 1)
    monkeypatch.setattr(postcopy, "waits_for_guest", lambda _: True)
    inventory = parts.operations.inventory

    def refuse() -> None:
        asyncio.run(postcopy.refuse(parts.config, parts.ledger, inventory, UUID))

    refuse()  # memory of tmpfs can do it
    monkeypatch.setattr(inventory, "has_struct_pages", lambda _: False)
    if why:
        with pytest.raises(DomainRefused, match=why):
            refuse()
    else:
        refuse()
    monkeypatch.setattr(postcopy, "waits_for_guest", lambda _: False)
    refuse()  # an ordinary start
