# SPDX-License-Identifier: GPL-2.0-or-later
"""Save, end and resume domains of libvirt's test driver; ``tests/libvirt/test_refresh`` restores them in QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.rig.test_driver import THEIRS, domain_named_as_a_uuid
from virt_dmem.errors import HypervisorError
from virt_dmem.hypervisor.saving import Saving


@pytest.fixture
def saving() -> Iterator[Saving]:
    with Saving("test:///default") as found, domain_named_as_a_uuid(found):
        yield found


def state_of(saving: Saving, uuid: str) -> int:
    state: int = saving._connection.lookupByUUIDString(uuid).state()[0]
    return state


def test_a_saved_domain_is_known_as_such_until_it_runs_again(saving: Saving, tmp_path: Path) -> None:
    uuid = saving.find("test")
    saving.save(uuid, tmp_path / "saved")
    assert state_of(saving, uuid) == libvirt.VIR_DOMAIN_SHUTOFF
    assert saving.was_saved(uuid)
    saving._connection.restore(str(tmp_path / "saved"))
    assert not saving.was_saved(uuid)


def test_a_paused_domain_is_resumed_and_a_running_one_left(saving: Saving) -> None:
    uuid = saving.find("test")
    saving._connection.lookupByUUIDString(uuid).suspend()
    for _ in range(2):
        saving.resume(uuid)
        assert state_of(saving, uuid) == libvirt.VIR_DOMAIN_RUNNING


def test_a_domain_is_ended_once(saving: Saving) -> None:
    uuid = saving.find("test")
    saving.destroy(uuid)
    assert state_of(saving, uuid) == libvirt.VIR_DOMAIN_SHUTOFF
    assert not saving.was_saved(uuid)
    saving.destroy(uuid)
    saving._connection.lookupByUUIDString(uuid).create()


def test_nothing_is_done_with_a_domain_that_is_only_named_like_the_uuid(saving: Saving, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="has no domain"):
        saving.save(THEIRS, tmp_path / "saved")
    with pytest.raises(HypervisorError, match="has no domain"):
        saving.resume(THEIRS)
    saving.destroy(THEIRS)
    assert not saving.was_saved(THEIRS)


def test_a_file_that_cannot_be_restored_is_told(saving: Saving, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="libvirt failed for a restore"):
        saving.restore(tmp_path / "nothing")
