# SPDX-License-Identifier: GPL-2.0-or-later
"""An elastic pool without huge pages, and a fake of virt-dmem-pages that records and mounts as the real one does.

What the kernel does with real pages is in tests/unit/pools/elastic/test_change_real.py.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.rig.elastic_records import PAGE, elastic_record
from tests.rig.pool_records import write_record
from tests.unit.domains.conftest import memory
from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Reservation
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.elastic.growth import Growth
from virt_dmem.domains.elastic.returning import Returning
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.errors import DmemError, PoolShort
from virt_dmem.host import kernel
from virt_dmem.pools import record_files, registry
from virt_dmem.pools.backends.hugetlbfs_record import ElasticLimits
from virt_dmem.pools.elastic.room import limits_of, room_of
from virt_dmem.pools.elastic.wire import Done, GiveBack, Progress, Refused, encode, read_request
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.runtime.attempts import Attempts
from virt_dmem.units import MIB

UUIDS = [f"{number}1111111-edaf-9455-926a-d65c16db1809" for number in range(9)]


def domain(number: int, *sizes: int) -> DomainMemory:
    return replace(memory(*sizes), uuid=UUIDS[number], name=f"vm{number}")


@pytest.fixture(autouse=True)
def calm_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of this host may wait for memory while the tests run."""
    monkeypatch.setattr(kernel, "pressure", lambda _of: 0.0)


class FakePages:
    """Stands for virt-dmem-pages: writes records and mounts hugetlbfs, and takes no huge pages."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.asked: list[str] = []
        self.refuses: list[DmemError] = []
        """Raised for the next requests, one each."""
        self.wait = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = read_request(await reader.readline())
        try:
            writer.write(encode(Progress("taking", 0, 1)))
            await asyncio.sleep(self.wait)
            if self.refuses:
                raise self.refuses.pop(0)
            segment = self.give_back(request) if isinstance(request, GiveBack) else self.take(request)
            writer.write(encode(Done(segment)))
        except PoolShort as error:
            writer.write(encode(Refused(error.code, error.message, error.hint, error.had)))
        except DmemError as error:
            writer.write(encode(Refused(error.code, error.message, error.hint)))
        finally:
            writer.close()

    def take(self, request: object) -> str:
        pool, nodes = request.pool, request.nodes  # type: ignore[attr-defined]
        there = registry.segments(self.config, pool)
        limits = limits_of(there[0])
        assert limits
        room_of(there, limits).require(pool, nodes)
        name = f"{pool}+{max(record.number for record in there) + 1}"
        self.asked.append(f"take {name}")
        mount(self.config, name, nodes, limits)
        return name

    def give_back(self, request: GiveBack) -> str:
        self.asked.append(f"give-back {request.segment}")
        path = self.config.pools_dir / request.segment
        subprocess.run(["umount", path], check=True)
        path.rmdir()
        record_files.remove(self.config, request.segment)
        return request.segment


def mount(config: Config, name: str, nodes: dict[int, int], limits: ElasticLimits) -> None:
    path = config.pools_dir / name
    path.mkdir(parents=True)
    options = f"pagesize=2M,size={sum(nodes.values())}"
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", options, f"virt-dmem-{name}", path], check=True)
    write_record(config, elastic_record(config, name, nodes, boot_id=kernel.boot_id(), limits=limits))


class Elastic:
    """Wired as the daemon does, with an elastic pool ``p``; only in a mount namespace of its own."""

    def __init__(self, directory: Path, *, most: int = 16 * PAGE, linger: int = 600) -> None:
        self.config = msgspec.convert(
            {
                "daemon": {"state_dir": str(directory / "state"), "run_dir": str(directory / "run")},
                "prefault": {"ready": "off"},
            },
            Config,
        )
        mount(self.config, "p", {0: 0}, ElasticLimits(most, 0, 256 * MIB, linger))
        self.ledger = Ledger(self.config.ledger_path, kernel.boot_id())
        self.inventory = Inventory(self.config, self.ledger)
        self.attempts = Attempts()
        extents = ExtentManager(self.config, self.ledger, self.inventory, StepTimes(self.ledger))
        self.extents = extents
        self.returning = Returning(self.config, self.ledger, self.inventory, extents.prezero, self.attempts)
        self.growth = Growth(self.config, self.inventory, self.returning)
        self.admission = Admission(
            self.config, self.ledger, self.inventory, extents.prezero, extents.reclaim, growth=self.growth
        )
        self.pages = FakePages(self.config)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Run the fake in this context."""
        path = self.config.pages_socket_path
        server = await asyncio.start_unix_server(self.pages.serve, path)
        try:
            yield
        finally:
            server.close()
            path.unlink()

    async def start(self, number: int, *sizes: int) -> Reservation:
        """Reserve, as the hook's prepare does; the start succeeds."""
        reserved = await self.admission.reserve(domain(number, *sizes))
        self.admission.note_start(UUIDS[number], succeeded=True)
        return reserved

    async def stop(self, number: int) -> None:
        found = self.ledger.find(UUIDS[number])
        assert found
        await self.extents.release(found)

    def segments(self) -> set[SegmentId]:
        return {record.segment for record in registry.records(self.config)}
