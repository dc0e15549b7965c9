# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a process has pinned: the next domain never gets it, and never misses it."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.pinner import pinned
from tests.rig.real_pools import HUGE, SIZE, real_config
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, Phase
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.config.schema import Config, PrefaultConfig
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains import reconcile
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.extents import ExtentManager, StepProgress
from virt_dmem.domains.hooks import HookOperations
from virt_dmem.domains.reconcile import ReconcileContext
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.errors import NotEnoughMemory
from virt_dmem.host import kernel
from virt_dmem.pools import manage, segment_files
from virt_dmem.runtime.attempts import Round

ONE, TWO = "c7a5fdbd-edaf-9455-926a-d65c16db1809", "11111111-edaf-9455-926a-d65c16db1809"
SECRET = b"the first guest's secret"


class Rig:
    """The daemon's parts on a real pool, without libvirt."""

    def __init__(self, config: Config, backend: str) -> None:
        self.backend = backend
        config = msgspec.structs.replace(
            config, prefault=PrefaultConfig(ready_pressure=100.0)
        )  # whatever else goes on here
        manage.create(config, "p", sizes=SIZE, backend=backend)
        self.config = config
        self.ledger = Ledger(config.ledger_path, kernel.boot_id())
        self.inventory = Inventory(config, self.ledger)
        self.wire()
        self.worker = PrezeroWorker(config, self.inventory, self.extents.prezero)

    def wire(self) -> None:
        times = StepTimes(self.ledger)
        self.extents = ExtentManager(self.config, self.ledger, self.inventory, times)
        admission = Admission(self.config, self.ledger, self.inventory, self.extents.prezero, self.extents.reclaim)
        self.hooks = HookOperations(self.config, self.ledger, admission, self.extents, times)

    def restarted(self) -> Rig:
        """A daemon anew, after the one before was killed."""
        self.ledger.close()
        again = object.__new__(Rig)
        again.backend, again.config = self.backend, self.config
        again.ledger = Ledger(self.config.ledger_path, kernel.boot_id())
        again.inventory = Inventory(self.config, again.ledger)
        again.wire()
        return again

    async def prepared(self, uuid: str, size_bytes: int) -> Extent:
        await self.hooks.prepare(domain(uuid, size_bytes), silent)
        found = self.ledger.find(uuid)
        assert found is not None
        return found.extents[0]

    async def ran(self, uuid: str, size_bytes: int) -> Extent:
        """The extent of a domain that runs, which has written everywhere."""
        extent = await self.prepared(uuid, size_bytes)
        self.ledger.set_phase(uuid, Phase.RUNNING)
        write(extent.path, SECRET)
        return extent

    async def reconciled(self) -> list[str]:
        """Let a round of housekeeping look at the pool."""
        now = ReconcileContext(
            self.config,
            self.ledger,
            self.inventory,
            self.extents,
            None,
            kernel.boot_id(),
            Round(),  # type: ignore[arg-type]
        )
        return await reconcile._reconcile_segment(now, "p")

    def free(self) -> int:
        return sum(self.inventory.free_in("p").values())

    def close(self) -> None:
        self.ledger.close()
        manage.destroy(self.config, "p")


def silent(_report: StepProgress) -> None:
    """Report nothing."""


def domain(uuid: str, size_bytes: int) -> DomainMemory:
    cells = (Cell("pc.ram", None, size_bytes, (), ""),)
    return DomainMemory(uuid, f"d-{uuid[:4]}", "p", cells, True, True, None, None, None, None)


def write(path: Path, words: bytes) -> None:
    with path.open("r+b") as file, memory_of(file.fileno()) as memory:
        for at in range(0, len(memory), HUGE):
            memory[at : at + len(words)] = words


@contextmanager
def memory_of(fd: int) -> Iterator[memoryview]:
    with mmap.mmap(fd, 0) as mapped, memoryview(mapped) as view:
        yield view


def read(path: Path) -> bytes:
    with path.open("r+b") as file, memory_of(file.fileno()) as memory:
        return bytes(memory)


def story(backend: str, test: Callable[[Rig], Awaitable[None]]) -> None:
    with real_config() as config:
        rig = Rig(config, backend)
        try:
            asyncio.run(test(rig))
        finally:
            for path in list(Path(config.pools_dir, "p").rglob("*")):
                if path.is_file():
                    path.unlink()
            rig.close()


BACKENDS = pytest.mark.parametrize(
    "backend", ["tmpfs", pytest.param("hugetlbfs", marks=pytest.mark.needs_hugepages)]
)
HUGE_PAGES = pytest.mark.needs_hugepages


@BACKENDS
@in_own_mount_namespace
def test_a_process_that_pinned_a_guests_memory_neither_reads_nor_keeps_that_of_the_next(backend: str) -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE // 2)
        with pinned(extent.path, [0, HUGE]) as pinner:
            await rig.hooks.release(ONE)
            await rig.worker.run()
            after = await rig.ran(TWO, SIZE // 2)
            write(after.path, b"the second guest's secret")
            assert pinner.read() == (SECRET.ljust(4096, b"\0")) * 2, "it still has its own page"
            assert SECRET not in read(after.path)

    story(backend, test)


@HUGE_PAGES
@in_own_mount_namespace
def test_a_pool_is_smaller_by_what_is_pinned_and_whole_again_afterwards() -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE)
        with pinned(extent.path, [0, 3 * HUGE, 3 * HUGE + 4096]):
            await rig.hooks.release(ONE)
            await rig.extents.reclaim.settle("p")
            assert rig.free() == SIZE - 2 * HUGE
            assert rig.inventory.pool_statuses()[0].capacity_bytes == SIZE - 2 * HUGE
            with pytest.raises(NotEnoughMemory) as refused:
                await rig.prepared(TWO, SIZE)
            assert "4 MiB of p belong to no domain and are not free" in refused.value.hint
            assert rig.ledger.find(TWO) is None
            after = await rig.prepared(TWO, SIZE - 2 * HUGE)
            assert not read(after.path).strip(b"\0")
            await rig.hooks.release(TWO)
        assert await rig.prepared(TWO, SIZE), "they were returned to the kernel"
        assert rig.inventory.withheld() == {}

    story("hugetlbfs", test)


@HUGE_PAGES
@in_own_mount_namespace
def test_at_once_after_a_release_nobody_is_promised_what_may_be_pinned() -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE)
        with pinned(extent.path, [HUGE]):
            await rig.hooks.release(ONE)
            assert rig.free() <= SIZE - HUGE
            assert await rig.prepared(TWO, SIZE - HUGE), "memory that cannot be pinned is allocatable at once"

    story("hugetlbfs", test)


@HUGE_PAGES
@in_own_mount_namespace
def test_a_restart_forgets_no_pin() -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE)
        with pinned(extent.path, [HUGE]):
            await rig.hooks.release(ONE)
            again = rig.restarted()
            await again.extents.reclaim.audit("p")
            assert again.free() == SIZE - HUGE
            again.ledger.close()
            rig.ledger = Ledger(rig.config.ledger_path, kernel.boot_id())

    story("hugetlbfs", test)


@HUGE_PAGES
@in_own_mount_namespace
def test_what_a_running_guest_gives_back_while_it_is_pinned_is_promised_to_nobody() -> None:
    """A balloon, free-page reporting or virtio-mem: QEMU punches a hole, and something in it pins the page."""

    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE // 2)
        with pinned(extent.path, [0]):
            fd = os.open(extent.path, os.O_RDWR)
            os.truncate(fd, 0)  # as punching all of it
            os.truncate(fd, SIZE // 2)
            await rig.extents.reclaim.audit("p")
            assert rig.free() == SIZE // 2 - HUGE
            os.close(fd)
        async with asyncio.timeout(60):
            while rig.free() != SIZE // 2:
                await asyncio.sleep(0.1)
                await rig.extents.reclaim.audit("p")

    story("hugetlbfs", test)


@HUGE_PAGES
@in_own_mount_namespace
def test_memory_populated_meanwhile_is_not_taken_for_pinned() -> None:
    async def test(rig: Rig) -> None:
        await rig.ran(ONE, SIZE // 2)

        async def come_and_go() -> None:
            for _ in range(10):
                await rig.prepared(TWO, SIZE // 4)
                await rig.hooks.release(TWO)

        async def look() -> None:
            for _ in range(20):
                await rig.extents.reclaim.audit("p")
                await asyncio.sleep(0.005)

        await asyncio.gather(come_and_go(), look())
        await rig.extents.reclaim.settle("p")
        assert (rig.inventory.withheld(), rig.free()) == ({}, SIZE // 2)

    story("hugetlbfs", test)


@BACKENDS
@in_own_mount_namespace
def test_memory_of_a_file_that_virt_dmem_did_not_create_is_promised_to_nobody(backend: str) -> None:
    async def test(rig: Rig) -> None:
        stray = rig.config.pools_dir / "p" / "stray"
        with stray.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 4 * HUGE)
        await rig.extents.reclaim.audit("p")
        assert rig.free() == SIZE - 4 * HUGE
        with stray.open("rb"):
            stray.unlink()
            await rig.extents.reclaim.audit("p")
            assert rig.free() == SIZE - 4 * HUGE, "a process has it open"
        assert await rig.prepared(ONE, SIZE)

    story(backend, test)


@BACKENDS
@in_own_mount_namespace
def test_what_qemu_takes_of_a_device_beyond_its_charge_is_charged_and_promised_to_nobody(backend: str) -> None:
    """A file of virtio-mem has the device's largest size, and is charged for the memory in it."""

    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE // 2)
        node = next(iter(extent.shares))
        with extent.path.open("r+b") as file:
            file.truncate(0)
            file.truncate(SIZE // 2)
        rig.ledger.recharge(extent, {node: 0})
        assert rig.free() == SIZE
        write(extent.path, SECRET)  # all of it
        actions = await rig.reconciled()
        assert [action for action in actions if "charge" in action]
        assert rig.free() == SIZE // 2
        assert not await rig.reconciled()

    story(backend, test)


@HUGE_PAGES
@in_own_mount_namespace
def test_what_another_guest_gives_back_at_that_moment_is_not_taken_for_what_is_pinned() -> None:
    async def test(rig: Rig) -> None:
        other = await rig.ran(TWO, SIZE // 2)
        extent = await rig.ran(ONE, SIZE // 2)
        used, looks = segment_files._used, 0

        def and_the_other_punches(path: str | int) -> int:
            nonlocal looks
            looks += 1
            if looks == 2:
                os.truncate(other.path, SIZE // 2 - HUGE)
                os.truncate(other.path, SIZE // 2)
            return used(path)

        with pinned(extent.path, [0]), pytest.MonkeyPatch.context() as patch:
            patch.setattr(segment_files, "_used", and_the_other_punches)
            await rig.hooks.release(ONE)
            assert rig.free() <= SIZE // 2 - HUGE
            await rig.extents.reclaim.settle("p")
            assert rig.free() == SIZE // 2 - HUGE

    story("hugetlbfs", test)


@HUGE_PAGES
@in_own_mount_namespace
def test_what_is_pinned_of_a_file_of_no_row_is_withheld_in_the_same_round() -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE)
        with pinned(extent.path, [0]):
            rig.ledger.forget_extent(extent)
            rig.ledger.forget(ONE)
            await rig.reconciled()
            assert not extent.path.exists()
            assert rig.free() == SIZE - HUGE

    story("hugetlbfs", test)


@BACKENDS
@in_own_mount_namespace
def test_a_file_that_was_enlarged_when_its_guest_ends_is_logged_and_all_of_it_is_freed(backend: str) -> None:
    async def test(rig: Rig) -> None:
        extent = await rig.ran(ONE, SIZE // 2)
        os.truncate(extent.path, SIZE // 2 + HUGE)
        write(extent.path, SECRET)
        with said("virt_dmem.allocation.reclaim") as lines:
            await rig.hooks.release(ONE)
        assert "2 MiB larger" in lines[0]
        assert rig.free() == SIZE
        assert await rig.prepared(TWO, SIZE)

    story(backend, test)


@contextmanager
def said(logger: str) -> Iterator[list[str]]:
    """What is logged in this context: a child process has no caplog."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Kept()
    logging.getLogger(logger).addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger(logger).removeHandler(handler)
