# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache: the domains that it knows, and pools that change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.prezero import ONE, TWO, Rig, domain
from virt_dmem.host import kernel


@in_own_mount_namespace
def test_when_a_domain_ran_is_remembered_while_libvirt_knows_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.prezero.set_domains([domain(ONE, 8)])
    for uuid in (ONE, TWO):
        rig.release(uuid)
    rig.prezero.update_domain(TWO, domain(TWO, 8))
    assert rig.prezero.likelihood(ONE) > rig.prezero.likelihood(TWO) == 0
    for known in (None, domain(ONE, 8)):
        rig.prezero.update_domain(ONE, known)
    assert rig.prezero.likelihood(ONE) == 0


@in_own_mount_namespace
def test_it_tells_why_no_more_is_pre_zeroed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)

    def note() -> str:
        (status,) = rig.prezero.pool_statuses()
        return status.ready_note

    async def story() -> None:
        await rig.worker.run()
        assert note() == "which domains there are is not known: libvirt has not answered yet"
        rig.prezero.set_domains([])
        await rig.worker.run()
        assert note().startswith("no target: no applied domain is shut off")
        rig.prezero.set_domains([domain(ONE, 8)])
        monkeypatch.setattr(kernel, "pressure", lambda _of: 101.0)
        await rig.worker.run()
        assert note().startswith("paused: tasks of the host wait")
        monkeypatch.setattr(kernel, "pressure", lambda _of: 0.0)
        rig.prezero.is_host_busy = False
        assert note() == "under way"
        await rig.worker.run()
        assert note() == ""
        (status,) = rig.prezero.pool_statuses()
        assert status.ready_bytes == sum(node.ready_bytes for node in status.nodes) > 0

    asyncio.run(story())
