# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the daemon that serve domains, on a pool of tmpfs, without libvirt."""

from __future__ import annotations

from pathlib import Path

import msgspec

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Reservation
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domains.admission import Admission
from virt_dmem.domains.device_ops import DeviceOperations
from virt_dmem.domains.extents import ExtentManager
from virt_dmem.domains.hooks import HookOperations
from virt_dmem.domains.step_times import StepTimes
from virt_dmem.host import kernel
from virt_dmem.pools import manage
from virt_dmem.pools.record import NodeShare, PoolRecord

MIB, GIB = 1 << 20, 1 << 30
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


class Parts:
    """Wired as the daemon does, with a pool ``p`` of 64 MiB; only in a mount namespace of its own."""

    def __init__(self, directory: Path) -> None:
        libvirt = directory / "libvirt"
        libvirt.mkdir()
        (libvirt / "qemu.conf").write_text(f'memory_backing_dir = "{libvirt}"\n')
        self.config = msgspec.convert(
            {
                "daemon": {"state_dir": str(directory / "state"), "run_dir": str(directory / "run")},
                "libvirt": {"config_file": str(libvirt / "qemu.conf"), "run_dir": str(libvirt)},
                "prefault": {"ready": "off"},
            },
            Config,
        )
        manage.create(self.config, "p", sizes=64 * MIB, backend="tmpfs")
        self.ledger = Ledger(self.config.ledger_path, kernel.boot_id())
        inventory = Inventory(self.config, self.ledger)
        times = StepTimes(self.ledger)
        self.extents = ExtentManager(self.config, self.ledger, inventory, times)
        self.admission = Admission(self.config, self.ledger, inventory, self.extents.prezero, self.extents.reclaim)
        self.hooks = HookOperations(self.config, self.ledger, self.admission, self.extents, times)
        self.operations = DeviceOperations(self.config, self.ledger, inventory, self.admission, self.extents)

    def held(self) -> Reservation:
        found = self.ledger.find(UUID)
        assert found is not None
        return found


def memory(*sizes: int, applied: bool = True) -> DomainMemory:
    """Return a domain with a guest cell for each of the sizes (bytes)."""
    cells = tuple(Cell(f"ram-node{number}", number, size, (), "") for number, size in enumerate(sizes))
    return DomainMemory(UUID, "vm", "p", cells, True, applied, None, None, None, None)


def write_record(config: Config, pool: str, backend: str, *, page_size: int = 2 * MIB) -> PoolRecord:
    """Write the record of a pool that is not there."""
    record = PoolRecord(pool, backend, page_size, f"/none/{pool}", {0: NodeShare(GIB)}, state="ready")
    config.pool_records_dir.mkdir(exist_ok=True)
    (config.pool_records_dir / f"{pool}.json").write_bytes(msgspec.json.encode(record))
    return record


def config_in(directory: Path, **libvirt: object) -> Config:
    return msgspec.convert({"daemon": {"state_dir": str(directory)}, "libvirt": libvirt}, Config)
