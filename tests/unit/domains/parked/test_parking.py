# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a parked domain is kept by all that frees memory; what was interrupted is settled.

Parking and unparking themselves need QEMU and libvirt: tests/libvirt/test_refresh.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from tests.unit.hypervisor.test_saved_state import saved
from virt_dmem.allocation.models import ParkedStep, Phase
from virt_dmem.domains.parked import state_files
from virt_dmem.domains.parked.parking import Parking
from virt_dmem.domains.parked.restores import Restores
from virt_dmem.errors import DomainParked, DomainRefused, LedgerError
from virt_dmem.hypervisor.qmp import Monitors


class FakeLibvirt:
    """Stands for libvirt, where the domain is shut off."""

    def __init__(self, *, saved_by_others: bool = False) -> None:
        self._saved = saved_by_others

    def may_run(self, _uuid: str) -> bool:
        return False

    def was_saved(self, _uuid: str) -> bool:
        return self._saved


class Parked(Parts):
    """A domain of 1 MiB at some step, and libvirt that has it shut off."""

    def __init__(self, directory: Path, step: ParkedStep, phase: Phase, libvirt: FakeLibvirt | None = None) -> None:
        super().__init__(directory)
        asyncio.run(self.hooks.prepare(memory(MIB), lambda _: None))
        self.ledger.set_phase(UUID, phase)
        self.state_file = state_files.file_of(self.config, UUID)
        self.state_file.parent.mkdir()
        self.ledger.set_parked(UUID, step, self.state_file)
        self.parking = Parking(self.operations, cast("Monitors", None), Restores())
        found = libvirt or FakeLibvirt()

        async def ask(question: Callable[[Any], Any]) -> Any:
            return question(found)

        self.operations.ask_libvirt = ask  # type: ignore[assignment,method-assign]

    def is_kept(self) -> bool:
        held = self.ledger.find(UUID)
        return held is not None and held.phase is Phase.PARKED and held.extents[0].path.exists()

    def is_free(self) -> bool:
        return self.ledger.find(UUID) is None and not self.ledger.reserved()


@in_own_mount_namespace
@pytest.mark.parametrize("step", [ParkedStep.PARKING, ParkedStep.PARKED, ParkedStep.UNPARKING])
def test_nothing_frees_the_memory_of_a_parked_domain(tmp_path: Path, step: ParkedStep) -> None:
    parts = Parked(tmp_path, step, Phase.RUNNING)
    asyncio.run(parts.hooks.stopped(UUID))
    asyncio.run(parts.hooks.release(UUID))
    assert parts.is_kept()
    asyncio.run(parts.extents.release_abandoned(parts.held()))
    assert parts.is_kept()
    with pytest.raises(LedgerError):
        parts.ledger.forget(UUID)
    with pytest.raises(DomainParked, match="is parked: its memory is kept"):
        asyncio.run(parts.hooks.prepare(memory(MIB), lambda _: None))
    assert parts.is_kept()


@in_own_mount_namespace
def test_a_domain_that_ends_after_it_went_on_frees_its_memory(tmp_path: Path) -> None:
    parts = Parked(tmp_path, ParkedStep.RESUMING, Phase.RUNNING)
    parts.state_file.write_bytes(saved())
    asyncio.run(parts.hooks.release(UUID))
    assert parts.is_free()
    assert not parts.state_file.exists()


@in_own_mount_namespace
@pytest.mark.parametrize(
    ("step", "content", "by_others", "kept"),
    [
        (ParkedStep.PARKING, saved(), False, True),
        (ParkedStep.PARKING, saved(magic=b"LibvirtQemudPart"), False, False),
        (ParkedStep.PARKING, b"", False, False),
        (ParkedStep.PARKING, b"", True, True),
        (ParkedStep.UNPARKING, saved(), False, True),
        (ParkedStep.PARKED, saved(), False, True),
        (ParkedStep.RESUMING, saved(), False, False),
    ],
)
def test_a_domain_that_has_ended_is_settled_by_what_was_saved(
    tmp_path: Path, step: ParkedStep, content: bytes, *, by_others: bool, kept: bool
) -> None:
    parts = Parked(tmp_path, step, Phase.RUNNING, FakeLibvirt(saved_by_others=by_others))
    parts.state_file.write_bytes(content)
    asyncio.run(parts.parking.settle(UUID))
    if kept:
        assert parts.is_kept()
        assert (found := parts.ledger.parked(UUID)) is not None
        assert found.step is ParkedStep.PARKED
        assert parts.state_file.exists()
    else:
        assert parts.is_free()
        assert parts.ledger.all_parked() == {}
        assert not parts.state_file.exists()
    assert asyncio.run(parts.parking.settle(UUID)) == []


@in_own_mount_namespace
def test_a_guest_that_is_given_up_frees_its_memory(tmp_path: Path) -> None:
    parts = Parked(tmp_path, ParkedStep.PARKED, Phase.PARKED)
    parts.state_file.write_bytes(saved())
    change = asyncio.run(parts.parking.discard(parts.held().name))
    assert change.state == "discarded"
    assert parts.is_free()
    assert not parts.state_file.exists()
    with pytest.raises(DomainRefused, match="is not parked"):
        asyncio.run(parts.parking.discard(UUID))


@in_own_mount_namespace
def test_a_restore_takes_the_memory_that_is_kept_and_nothing_else(tmp_path: Path) -> None:
    parts = Parked(tmp_path, ParkedStep.UNPARKING, Phase.PARKED)
    (extent,) = parts.held().extents
    extent.path.write_bytes(b"kept" * (MIB // 4))
    asyncio.run(parts.hooks.prepare_parked(UUID))
    assert parts.held().phase is Phase.PREPARED
    assert extent.path.read_bytes()[:4] == b"kept"
    asyncio.run(parts.hooks.release(UUID))  # it failed
    assert parts.is_kept()
    assert extent.path.read_bytes()[-4:] == b"kept"
