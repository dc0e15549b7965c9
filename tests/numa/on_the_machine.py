# SPDX-License-Identifier: GPL-2.0-or-later
"""Test on a machine with three nodes, the last without CPUs, as root and without pytest; see test_numa.py.

Each function whose name begins with ``test_`` is one test, in this order, and restores the machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import re
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Reservation
from virt_dmem.allocation.prezero import worker
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.config.schema import Config, DaemonConfig, PrefaultConfig
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.hooks import HookOperations
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.errors import DmemError, NotEnoughMemory, PoolShort, PrefaultFailed
from virt_dmem.host import kernel, numa, processes
from virt_dmem.native.programs import HELPER
from virt_dmem.pools import ballast, manage, registry, resize
from virt_dmem.pools.segment_id import SegmentId

HUGE = 2 << 20
_DAEMON = DaemonConfig(state_dir="/run/state", run_dir="/run/virt-dmem")
CONFIG = Config(daemon=_DAEMON, prefault=PrefaultConfig(ready="off"))
"""Use ballast only."""
READY = Config(daemon=_DAEMON, prefault=PrefaultConfig(ready_pressure=100.0))
LIBC = ctypes.CDLL(None, use_errno=True)
SYS_MBIND, MPOL_PREFERRED, MPOL_BIND, MPOL_MF_STRICT = 237, 1, 2, 1
MAP_HUGETLB, MAP_NORESERVE, MADV_POPULATE_WRITE = 0x40000, 0x4000, 23


class NoDaemon:
    """A fake daemon that does not run, and so allocates nothing."""

    def retire(self, segment: str) -> None: ...

    def limit(self, pool: str, size_bytes: int) -> int:
        return 0


# What the machine has


def counts(what: str = "nr_hugepages") -> list[int]:
    base = Path("/sys/devices/system/node")
    return [int((base / f"node{node}/hugepages/hugepages-2048kB/{what}").read_text()) for node in range(3)]


@contextmanager
def spare_pages(node: int, pages: int) -> Iterator[None]:
    """Allocate huge pages of the administrator's own, unused and not reserved."""
    knob = Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
    before = int(knob.read_text())
    knob.write_text(str(before + pages))
    assert int(knob.read_text()) == before + pages
    yield
    knob.write_text(str(int(knob.read_text()) - pages))


@contextmanager
def pool(*pages: int) -> Iterator[Config]:
    """Create the pool ``p`` with a number of pages of node 0, 1, …; return all to the host afterwards."""
    before = counts()
    manage.create(
        CONFIG, "p", sizes={node: count * HUGE for node, count in enumerate(pages) if count}, page_size=HUGE
    )
    try:
        yield CONFIG
    finally:
        for record in registry.segments(CONFIG, "p"):  # of a test that failed
            for file in manage.files_in(record):
                file.unlink()
        manage.destroy(CONFIG, "p")
    assert counts() == before, (counts(), before)


@contextmanager
def competitor(node: int, pages: int = 64) -> Iterator[int]:
    """Run a process that binds to a node and allocates up to a number of huge pages there; yield that number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE
        memory = mmap.mmap(-1, pages * HUGE, flags=flags)
        address = address_of(memory)
        assert mbind(address, pages * HUGE, MPOL_BIND, node) == 0
        got = 0
        while got < pages and not LIBC.madvise(ctypes.c_void_p(address + got * HUGE), HUGE, MADV_POPULATE_WRITE):
            got += 1
        os.write(writing, bytes([got]))
        time.sleep(1000)
    yield os.read(reading, 1)[0]
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def mbind(address: int, size: int, policy: int, *nodes: int, flags: int = 0) -> int:
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    if LIBC.syscall(SYS_MBIND, ctypes.c_void_p(address), size, policy, ctypes.byref(mask), 65, flags):
        return ctypes.get_errno()
    return 0


# What the daemon does


class Daemon:
    """The service behind the hooks, without the socket."""

    def __init__(self, config: Config) -> None:
        config.ledger_path.unlink(missing_ok=True)
        self.ledger = Ledger(config.ledger_path, kernel.boot_id())
        self.inventory = Inventory(config, self.ledger)
        times = StepTimes(self.ledger)
        self.extents = ExtentManager(config, self.ledger, self.inventory, times)
        admission = Admission(config, self.ledger, self.inventory, self.extents.prezero, self.extents.reclaim)
        self.hooks = HookOperations(config, self.ledger, admission, self.extents, times)
        self.worker = PrezeroWorker(config, self.inventory, self.extents.prezero)

    def prepare(self, *cells: Cell) -> Reservation:
        asyncio.run(self.hooks.prepare(self.memory(*cells), lambda _: None))
        reservation = self.ledger.find(UUID)
        assert reservation is not None
        return reservation

    def memory(self, *cells: Cell) -> DomainMemory:
        return DomainMemory(UUID, "vm", "p", cells, True, True, None, None, None, None)

    def release(self) -> None:
        asyncio.run(self.hooks.release(UUID))

    def hold_free(self) -> None:
        asyncio.run(self.worker.run())


UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def cell(number: int, pages: int, *nodes: int, policy: str = "") -> Cell:
    return Cell(f"ram-node{number}", number, pages * HUGE, nodes, policy or ("strict" if nodes else ""))


def where(path: Path) -> dict[int, int]:
    """Return the pages of a file by node, as the kernel reports them."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for at in range(0, len(memory), HUGE):
            _ = memory[at]
        found = path.stat()
        by_node = processes.bytes_by_node(os.getpid(), found.st_dev, found.st_ino)
    return {node: size // HUGE for node, size in by_node.items()}


# Tests


def test_nodes_and_their_kinds_are_seen() -> None:
    found = numa.nodes()
    assert [len(node.cpus) for node in found] == [1, 1, 0]
    assert numa.nodes_without_cpus() == {2}
    assert all(node.memory.total_bytes for node in found)


def test_a_pool_has_what_was_asked_of_each_node_and_a_total_leaves_slow_memory_out() -> None:
    with pool(5, 9, 3):
        assert counts() == [5, 9, 3]
        (record,) = registry.records(CONFIG)
        assert registry.capacity(record) == {0: 5 * HUGE, 1: 9 * HUGE, 2: 3 * HUGE}
    record = manage.create(CONFIG, "q", sizes=8 * HUGE, page_size=HUGE)
    assert counts() == [4, 4, 0]
    manage.destroy(CONFIG, "q")


def test_a_node_that_cannot_give_so_much_is_refused_and_nothing_is_left() -> None:
    before = counts()
    try:
        manage.create(CONFIG, "p", sizes={0: HUGE, 2: 2048 * HUGE}, page_size=HUGE)
    except PoolShort as refusal:
        assert "node 2" in refusal.message, refusal
    else:
        raise AssertionError("not refused")
    assert (counts(), registry.records(CONFIG)) == (before, [])


def test_a_process_bound_to_a_node_gets_nothing_of_the_pool() -> None:
    with spare_pages(1, 16), pool(8, 8, 8):
        assert counts("free_hugepages") == [0, 16, 0]
        for node, got in ((0, 0), (1, 16), (2, 0)):
            with competitor(node) as taken:
                assert taken == got, (node, taken)


def test_without_ballast_it_would() -> None:
    """The kernel's reservation of a mount is for the whole host, not by node: hence the ballast."""
    with spare_pages(1, 16), pool(8, 8):
        (record,) = registry.records(CONFIG)
        ballast.shrink(record, 0, 0)
        with competitor(0) as taken:
            assert taken == 8, taken


def test_every_share_lies_on_its_node() -> None:
    with pool(12, 12, 6):
        daemon = Daemon(CONFIG)
        reservation = daemon.prepare(
            cell(0, 5, 1), cell(1, 6, 0, 1, policy="interleave"), cell(2, 12, 0, policy="preferred"), cell(3, 3)
        )
        planned = [{node: size // HUGE for node, size in extent.shares.items()} for extent in reservation.extents]
        assert planned == [{1: 5}, {0: 3, 1: 3}, {0: 9, 1: 1, 2: 2}, {1: 3}]
        assert [where(extent.path) for extent in reservation.extents] == planned
        daemon.release()
        daemon.hold_free()
        assert counts("free_hugepages") == [0, 0, 0]


def test_the_helper_runs_on_the_cpus_of_its_nodes_where_they_have_any() -> None:
    file = Path("/run/extent")
    for nodes, cpus, threads in (("0", "0", 1), ("1", "1", 1), ("0-1", "0-1", 2), ("2", "0-1", 2), ("1-2", "1", 1)):
        file.write_bytes(b"")
        os.truncate(file, 3 * 64 << 20)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while os.write(writing, b"x" * 4096):
                pass
        os.set_blocking(writing, True)  # full: the helper waits before it ends
        command = [HELPER, "--mode", "verify-zero", "--size", str(3 * 64 << 20), "--page-size", "4096"]
        command += ["--policy", "bind", "--nodes", nodes, "--progress-ms", "0", file]
        with subprocess.Popen(command, stdout=writing) as helper:
            os.close(writing)
            status = Path(f"/proc/{helper.pid}/wchan")
            while "pipe" not in status.read_text():
                time.sleep(0.05)
            allowed = Path(f"/proc/{helper.pid}/status").read_text()
            with os.fdopen(reading, "rb") as pipe:
                said = json.loads(pipe.read().lstrip(b"x"))
        assert f"Cpus_allowed_list:\t{cpus}\n" in allowed, (nodes, allowed)
        assert said["threads"] == threads, (nodes, said)
    file.unlink()


def test_slow_memory_is_the_last_choice() -> None:
    with pool(4, 4, 8):
        daemon = Daemon(CONFIG)
        reservation = daemon.prepare(cell(0, 4), cell(1, 4), cell(2, 4))
        assert [where(extent.path) for extent in reservation.extents] == [{0: 4}, {1: 4}, {2: 4}]
        daemon.release()


def test_a_node_whose_last_processor_is_switched_off_is_slow_once_the_nodes_are_seen_again() -> None:
    switch = Path("/sys/devices/system/cpu/cpu1/online")
    try:
        with pool(4, 8):
            daemon = Daemon(CONFIG)
            for online, node in (("1", 1), ("0", 0), ("1", 1)):
                switch.write_text(online)
                daemon.inventory.reload_nodes()
                reservation = daemon.prepare(cell(0, 4))
                assert where(reservation.extents[0].path) == {node: 4}, online
                daemon.release()
    finally:
        switch.write_text("1")


def test_a_strict_cell_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pool(4, 8):
        daemon = Daemon(CONFIG)
        try:
            daemon.prepare(cell(0, 5, 0))
        except NotEnoughMemory as refusal:
            assert re.search(r"10 MiB for ram-node0 on node 0 .*node 0: 8 MiB, node 1: 16 MiB", refusal.message), (
                refusal
            )
        else:
            raise AssertionError("not refused")
        assert not daemon.ledger.reserved()


def test_qemus_own_mbind_takes_pages_that_lie_elsewhere() -> None:
    """QEMU binds its fresh mapping with MPOL_MF_STRICT; the kernel looks at mapped pages only, and none is yet."""
    with pool(2, 4):
        daemon = Daemon(CONFIG)
        (extent,) = daemon.prepare(cell(0, 4, 0, policy="preferred")).extents
        assert where(extent.path) == {0: 2, 1: 2}
        for policy in (MPOL_PREFERRED, MPOL_BIND):
            child = os.fork()
            if child == 0:
                with extent.path.open("r+b") as file:
                    memory = mmap.mmap(file.fileno(), 0)
                refused = mbind(address_of(memory), len(memory), policy, 0, flags=MPOL_MF_STRICT)
                for at in range(0, len(memory), HUGE):
                    memory[at] = 1  # the guest reaches all of it
                os._exit(refused)
            assert os.waitpid(child, 0)[1] == 0
        assert where(extent.path) == {0: 2, 1: 2}
        daemon.release()


def test_memory_that_a_domain_freed_is_held_again() -> None:
    with spare_pages(1, 8), pool(8, 8):
        daemon = Daemon(CONFIG)
        daemon.prepare(cell(0, 6, 0))
        daemon.hold_free()
        with competitor(0) as taken:
            assert taken == 0, taken
        daemon.release()
        assert counts("free_hugepages") == [6, 8, 0]
        daemon.hold_free()
        with competitor(0) as taken:
            assert taken == 0, taken


def test_freed_memory_is_held_on_its_node_again_and_is_clean_for_the_next_domain() -> None:
    """The kernel has it in between: a process that binds to the node just then may take it."""
    with spare_pages(1, 8), pool(8, 8):
        daemon = Daemon(READY)
        cells = (cell(0, 5, 0), cell(1, 6, 0, 1, policy="interleave"))
        for _ in range(2):
            (first, second) = daemon.prepare(*cells).extents
            assert (where(first.path), where(second.path)) == ({0: 5}, {0: 3, 1: 3})
            for extent in (first, second):
                with extent.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                    assert not any(memory[at : at + HUGE].strip(b"\0") for at in range(0, len(memory), HUGE))
                    memory[:] = b"x" * len(memory)
            daemon.release()
            daemon.hold_free()
            with competitor(0) as taken:
                assert taken == 0, taken
            assert counts("free_hugepages") == [0, 8, 0]
            held = daemon.extents.prezero.of(SegmentId("p")).held()
            assert {node: size // HUGE for node, size in held.items()} == {0: 8, 1: 3}
        reservation = daemon.prepare(cell(0, 7, 0))  # it yields it to another one
        assert where(reservation.extents[0].path) == {0: 7}
        daemon.release()


def test_interleaved_memory_zeroed_in_chunks_lies_as_the_kernel_would_have_it() -> None:
    """Chunks of an odd number of pages: each continues where the previous one ended."""
    chunk, worker._CHUNK = worker._CHUNK, 3 * HUGE
    try:
        with spare_pages(1, 8), pool(8, 8):
            daemon = Daemon(READY)
            memory = daemon.memory(cell(0, 7, 0, 1, policy="interleave"))
            prezero = daemon.extents.prezero
            prezero.set_domains([memory])
            for done in (3, 6, 7):
                asyncio.run(daemon.worker._step())
                (extent,) = prezero.of(SegmentId("p")).extents()
                assert extent.zeroed_bytes == done * HUGE, extent
                held = prezero.of(SegmentId("p")).held()
                assert where(extent.path) == {node: size // HUGE for node, size in held.items()}
            inode = extent.path.stat().st_ino
            (taken,) = daemon.prepare(*memory.cells).extents
            assert taken.path.stat().st_ino == inode
            assert where(taken.path) == {0: 4, 1: 3}
            daemon.release()
    finally:
        worker._CHUNK = chunk


def test_a_process_quicker_than_the_helper_only_fails_the_start() -> None:
    """The critical moment: the domain's ballast is released, and its pages are not faulted yet."""
    with spare_pages(1, 8), pool(8, 8):
        daemon = Daemon(CONFIG)
        evict = daemon.extents.prezero.evict
        thieves = []

        async def robbed(segment: SegmentId) -> None:
            await evict(segment)
            thieves.append(competitor(0, 2))
            assert thieves[0].__enter__() == 2

        daemon.extents.prezero.evict = robbed  # type: ignore[method-assign]
        try:
            daemon.prepare(cell(0, 6, 0))
        except PrefaultFailed as failure:
            assert "out of memory in the pool, on the nodes asked for" in failure.message, failure
        else:
            raise AssertionError("it got pages that were not there")
        assert not daemon.ledger.reserved()
        daemon.hold_free()  # as much as there is
        thieves[0].__exit__(None, None, None)
        daemon.hold_free()
        assert counts("free_hugepages") == [0, 8, 0]


def test_a_ballast_that_was_truncated_is_repaired() -> None:
    with pool(8, 8):
        (record,) = registry.records(CONFIG)
        file = Path(record.mount, ballast.DIRECTORY, "node0")
        os.truncate(file, 0)
        os.truncate(file, 8 * HUGE)  # as a kill leaves it, before the pages are allocated
        assert ballast.held_bytes(record, 0) == 0
        Daemon(CONFIG).hold_free()
        assert (ballast.held_bytes(record, 0), where(file)) == (8 * HUGE, {0: 8})


def test_nodes_of_a_pool_are_resized() -> None:
    def to(**sizes: int) -> None:
        by_node = {int(name[1:]): pages * HUGE for name, pages in sizes.items()}
        resize.resize(CONFIG, "p", sizes=by_node, daemon=NoDaemon())

    with spare_pages(1, 4), pool(4, 6, 2):
        to(n0=7, n2=0)
        assert counts() == [7, 10, 0]
        assert [registry.capacity(record) for record in registry.records(CONFIG)] == [
            {0: 4 * HUGE, 1: 6 * HUGE},
            {0: 3 * HUGE},
        ]
        with competitor(0) as taken:
            assert taken == 0, taken
        to(n0=4)
        assert counts() == [4, 10, 0]


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            began = time.monotonic()
            try:
                test()
            except (Exception, DmemError):  # noqa: BLE001 -- told to the test that started the machine
                print(f"FAILED {name}\n{traceback.format_exc()}\nend of {name}", flush=True)
            else:
                print(f"PASSED {name} in {time.monotonic() - began:.1f} s", flush=True)
