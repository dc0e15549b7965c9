# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify attach and detach step by step, with a fake libvirt; tests/libvirt/test_hotplug.py has real guests."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from tests.rig.domain_documents import domain, metadata
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.unit.domains.conftest import MIB, UUID, Parts, memory
from virt_dmem.allocation.models import ExtentState, Phase
from virt_dmem.domains import hotplug as module
from virt_dmem.domains.extents import StepProgress
from virt_dmem.domains.hotplug import Hotplug
from virt_dmem.domains.virtio_mem import VirtioMem
from virt_dmem.errors import DmemError, DomainRefused, ExtentError, HypervisorError, NotMapped
from virt_dmem.hypervisor.qmp import QemuMemoryBackend

ALIAS = "ua-dmem0"
SIZE = 2 * MIB
ROOM = metadata(" pool='p'") + "<maxMemory slots='2' unit='GiB'>2</maxMemory>"


def ignore(_progress: StepProgress) -> None:
    """Report nothing."""


class Rig:
    """A running domain, a fake libvirt and a fake monitor; this process stands in for QEMU."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts = Parts(directory)
        self.links = directory / "libvirt/libvirt/qemu/1-vm"
        self.links.mkdir(parents=True)
        self.asked: list[tuple[str, bool]] = []
        """What libvirt was asked for, and whether in the persistent XML as well."""
        self.populated: list[int] = []
        """The bytes of memory of each device when libvirt was asked to attach it."""
        self.persistent = True
        self.error: HypervisorError | None = None
        """Raised by libvirt when a device was attached."""
        self.refuses_attach = self.refuses_detach = False
        self.guest: list[str] = []
        """The answers of the guest, the next one first: refuses, ignores; without any it unplugs."""
        self.backends: list[QemuMemoryBackend] | None = None
        self._devices: dict[str, tuple[str, mmap.mmap]] = {}
        monkeypatch.setattr(module, "find_qemu", lambda *_: os.getpid())
        monkeypatch.setattr(module, "_UNDO_SECONDS", 0.2)
        monkeypatch.setattr(self.parts.operations, "ask_libvirt", self._ask)
        self.hotplug = Hotplug(self.parts.operations, VirtioMem(self.parts.operations), FakeMonitors(self))  # type: ignore[arg-type]

    async def start(self) -> None:
        await self.parts.hooks.prepare(memory(MIB), ignore)
        self.parts.ledger.set_phase(UUID, Phase.RUNNING)

    def states(self) -> dict[str, ExtentState]:
        """Return the state of each memory device that the ledger has."""
        return {extent.alias: extent.state for extent in self.parts.held().extents if extent.alias != "ram-node0"}

    def is_as_before(self) -> bool:
        """Return whether nothing of a device is left."""
        files = [path.name for path in (self.parts.config.pools_dir / "p").glob("libvirt-*/*")]
        links = list(self.links.iterdir())
        return (files, links, self.parts.held().size_bytes) == (["ram-node0"], [], MIB)

    async def _ask(self, question: Callable[[Rig], object]) -> object:
        return question(self)

    # What libvirt is asked

    def live_xml(self, _uuid: str) -> bytes:
        devices = "".join(xml for xml, _ in self._devices.values())
        cells = "<cell id='0' memory='1' unit='GiB'/>"
        return domain(f"{ROOM}<devices>{devices}</devices>", cells=cells, head="type='kvm' id='1'")

    settled_xml = inactive_xml = live_xml

    def is_persistent(self, _uuid: str) -> bool:
        return self.persistent

    def attach(self, _uuid: str, xml: str, *, persistent: bool) -> None:
        self.asked.append(("attach", persistent))
        alias = etree.fromstring(xml).xpath("string(alias/@name)")
        if self.refuses_attach:
            raise HypervisorError("libvirt failed: no.", hint="")
        with (self.links / alias).open("r+b") as file:
            self.populated.append(os.fstat(file.fileno()).st_blocks * 512)
            self._devices[alias] = xml, mmap.mmap(file.fileno(), 0)
        if self.error:
            raise self.error

    def detach(self, uuid: str, alias: str, *, persistent: bool) -> None:
        self.asked.append(("detach", persistent))
        if self.refuses_detach:
            raise HypervisorError("libvirt failed: no such device.", hint="")
        answer = self.guest.pop(0) if self.guest else "unplugs"
        if answer == "refuses":
            self.parts.operations.note_refusal(uuid, alias)
        elif answer == "unplugs":
            self.unplug(alias)

    def unplug(self, alias: str) -> None:
        """Unplug a device, as the guest and QEMU do."""
        _, mapped = self._devices.pop(alias)
        mapped.close()


class FakeMonitors:
    """The monitor of the domain, which tells what the rig says."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def backends(self, _uuid: str) -> list[QemuMemoryBackend] | None:
        return self._rig.backends


def run(rig: Rig, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await rig.start()
        await story()
        await rig.parts.operations.close()

    asyncio.run(whole())


@in_own_mount_namespace
def test_qemu_gets_populated_memory_and_keeps_no_way_to_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)

    async def story() -> None:
        change = await rig.hotplug.attach("vm", SIZE, ignore, persistent=True)
        assert (change.state, change.alias, change.size_bytes) == ("attached", ALIAS, SIZE)
        assert (rig.asked, rig.populated) == ([("attach", True)], [SIZE])
        assert rig.states() == {ALIAS: ExtentState.POPULATED}
        assert list(rig.links.iterdir()) == []
        assert rig.parts.held().size_bytes == MIB + SIZE
        assert (await rig.hotplug.attach("vm", SIZE, ignore)).alias == "ua-dmem1", "its alias is taken"

    run(rig, story)


@in_own_mount_namespace
def test_what_libvirt_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, monkeypatch)
    rig.refuses_attach = True

    async def story() -> None:
        with pytest.raises(HypervisorError, match="libvirt failed: no"):
            await rig.hotplug.attach("vm", SIZE, ignore)
        assert rig.asked == [("attach", False)]
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_a_domain_that_ended_before_libvirt_was_asked_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "find_qemu", lambda *_: None)

    async def story() -> None:
        with pytest.raises(ExtentError, match="Domain vm ended before"):
            await rig.hotplug.attach("vm", SIZE, ignore)
        assert rig.asked == []
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_a_transient_domain_has_no_persistent_xml_to_attach_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    rig.persistent = False

    async def story() -> None:
        with pytest.raises(DomainRefused, match="vm is transient"):
            await rig.hotplug.attach("vm", SIZE, ignore, persistent=True)
        assert rig.is_as_before()
        assert (await rig.hotplug.attach("vm", SIZE, ignore)).state == "attached"
        await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=0)
        assert rig.asked == [("attach", False), ("detach", False)]

    run(rig, story)


@in_own_mount_namespace
def test_an_attach_that_fails_after_qemu_has_the_memory_is_undone_and_the_guest_asked_again_if_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    rig.error = HypervisorError("libvirt failed: timed out.", hint="")
    rig.guest = ["refuses", "unplugs"]

    async def story() -> None:
        with pytest.raises(HypervisorError, match="timed out"):
            await rig.hotplug.attach("vm", SIZE, ignore, persistent=True)
        assert rig.asked == [("attach", True), ("detach", True), ("detach", False)], "the XML was changed once"
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_memory_of_a_failed_attach_stays_charged_until_the_guest_unplugs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    rig.error = HypervisorError("libvirt failed: timed out.", hint="Look.")
    rig.guest = ["ignores"]

    async def story() -> None:
        with pytest.raises(HypervisorError, match="timed out") as caught:
            await rig.hotplug.attach("vm", SIZE, ignore)
        assert caught.value.hint == f"Look. 2 MiB stay charged until the guest unplugs {ALIAS}."
        assert rig.states() == {ALIAS: ExtentState.DETACHING}
        assert rig.parts.held().size_bytes == MIB + SIZE
        rig.unplug(ALIAS)
        assert await rig.parts.operations.remove_if_unmapped(rig.parts.held().extents[1])
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_a_failed_attach_that_cannot_be_undone_keeps_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    rig.error = HypervisorError("libvirt failed: timed out.", hint="")
    rig.refuses_detach = True

    async def story() -> None:
        with pytest.raises(HypervisorError, match="timed out") as caught:
            await rig.hotplug.attach("vm", SIZE, ignore)
        assert "It could not be detached again" in caught.value.hint
        assert rig.states() == {ALIAS: ExtentState.POPULATED}
        assert list(rig.links.iterdir()) == []

    run(rig, story)


@pytest.mark.parametrize(
    ("kind", "size_bytes", "shared"),
    [
        ("memory-backend-ram", SIZE, True),
        ("memory-backend-file", SIZE // 2, True),
        ("memory-backend-file", SIZE, False),
    ],
)
@in_own_mount_namespace
def test_memory_that_qemu_reports_to_be_something_else_is_detached_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size_bytes: int, *, shared: bool
) -> None:
    rig = Rig(tmp_path, monkeypatch)
    right = QemuMemoryBackend(f"mem{ALIAS}", "memory-backend-file", "/x", SIZE, "default", (), False, True)
    other = QemuMemoryBackend("ram-node0", "memory-backend-ram", "", MIB, "default", (), False, False)
    wrong = QemuMemoryBackend(f"mem{ALIAS}", kind, "/x", size_bytes, "default", (), False, shared)

    async def story() -> None:
        rig.backends = [other, wrong]
        with pytest.raises(NotMapped, match=f"reports {ALIAS} as a {kind}"):
            await rig.hotplug.attach("vm", SIZE, ignore)
        assert rig.is_as_before()
        rig.backends = [other, right]
        assert (await rig.hotplug.attach("vm", SIZE, ignore)).state == "attached"

    run(rig, story)


@pytest.mark.parametrize(
    ("guest", "state", "said"),
    [
        ([], "detached", ""),
        (["refuses"], "pending", "The guest refused; 2 MiB stay charged"),
        (["ignores"], "pending", "The guest did not answer within 0 s; 2 MiB stay charged"),
    ],
)
@in_own_mount_namespace
def test_memory_is_free_when_the_guest_has_unplugged_it_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: list[str], state: str, said: str
) -> None:
    rig = Rig(tmp_path, monkeypatch)

    async def story() -> None:
        await rig.hotplug.attach("vm", SIZE, ignore, persistent=True)
        rig.guest = list(guest)
        change = await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=0)
        assert (change.state, change.message.startswith(said)) == (state, True)
        assert rig.asked[-1] == ("detach", True), "it is in the persistent XML"
        if state == "detached":
            assert rig.is_as_before()
            return
        assert rig.states() == {ALIAS: ExtentState.DETACHING}
        assert (await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=0)).state == "detached", "asked again"
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_a_detach_that_libvirt_refuses_changes_nothing_unless_the_device_is_gone_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)

    async def story() -> None:
        await rig.hotplug.attach("vm", SIZE, ignore)
        rig.refuses_detach = True
        with pytest.raises(DmemError, match="no such device"):
            await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=0)
        assert rig.states() == {ALIAS: ExtentState.POPULATED}
        rig.unplug(ALIAS)
        assert (await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=0)).state == "detached"
        assert rig.is_as_before()

    run(rig, story)


@in_own_mount_namespace
def test_a_guest_that_refused_is_asked_again_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch)

    async def story() -> None:
        await rig.hotplug.attach("vm", SIZE, ignore)
        rig.guest = ["refuses", "ignores"]
        assert (await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=60)).state == "pending"
        asyncio.get_running_loop().call_later(0.2, rig.unplug, ALIAS)
        assert (await rig.hotplug.detach("vm", ALIAS, ignore, wait_seconds=60)).state == "detached"
        assert rig.is_as_before()

    run(rig, story)
