# SPDX-License-Identifier: GPL-2.0-or-later
"""Make pre-zeroed extents, domains, and a pool on tmpfs with a worker whose helper is slow."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from virt_dmem.allocation.inventory import Inventory
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState
from virt_dmem.allocation.prezero.cache import PrezeroCache
from virt_dmem.allocation.prezero.worker import PrezeroWorker
from virt_dmem.config.schema import Config, DaemonConfig, PrefaultConfig
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.host import kernel
from virt_dmem.pools import extent_files
from virt_dmem.pools.prezeroed_files import Owner, PrezeroedExtent, Shares
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import MIB

PAGE = 4096
ONE, TWO = "c7a5fdbd-edaf-9455-926a-d65c16db1809", "11111111-edaf-9455-926a-d65c16db1809"
RAM = Owner(ONE, "pc.ram")


def extent(shares: Shares, zeroed: int = -1, *, owner: Owner = RAM, policy: str = "bind") -> PrezeroedExtent:
    """Return a pre-zeroed extent with shares in pages, ``zeroed`` pages of it done; -1: all."""
    whole = tuple((node, pages * PAGE) for node, pages in shares)
    pages = sum(pages for _, pages in shares) if zeroed < 0 else zeroed
    return PrezeroedExtent(Path("/pool/.ready"), pages * PAGE, policy, whole, owner, PAGE)


def pages(held: Counter[int]) -> dict[int, int]:
    """Return held memory in pages by node."""
    return {node: size // PAGE for node, size in held.items() if size}


shares_strategy = st.lists(
    st.tuples(st.integers(0, 7), st.integers(1, 40)), min_size=1, max_size=4, unique_by=lambda of: of[0]
)
extents = st.builds(
    lambda shares, zeroed, policy: extent(
        tuple(shares), min(zeroed, sum(size for _, size in shares)), policy=policy
    ),
    shares_strategy,
    st.integers(0, 200),
    st.sampled_from(["bind", "preferred", "interleave"]),
)


def domain(uuid: str, *cells: int, pool: str = "p", nodes: tuple[int, ...] = ()) -> DomainMemory:
    """Return a domain with a memory backend of each size in pages."""
    backends = tuple(
        Cell(f"ram-node{number}", number, size * PAGE, nodes, "strict" if nodes else "")
        for number, size in enumerate(cells)
    )
    return DomainMemory(uuid, f"vm-{uuid[:4]}", pool, backends, True, True, None, None, None, None)


class Rig:
    """Set up a pool on a real tmpfs, its cache, and a worker whose helper takes 50 ms a chunk."""

    def __init__(self, scratch: Path) -> None:
        helper = scratch / "helper"
        self.missed = scratch / "missed"
        helper.write_text(f"""#!/bin/sh
for path; do :; done
[ -e "$path" ] || echo "$path" >>{self.missed}
exec 3<>"$path"
sleep 0.05
dd if=/dev/zero bs={8 * PAGE} count=1 conv=notrunc status=none >&3
echo '{{"event":"done","bytes":0}}'
""")
        helper.chmod(0o755)
        state, run = scratch / "state", scratch / "run"
        config = Config(
            daemon=DaemonConfig(state_dir=str(state), run_dir=str(run)),
            prefault=PrefaultConfig(helper=str(helper), ready_pressure=100.0),
        )
        self.mount = run / "pools/p"
        self.mount.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "virt-dmem-p", self.mount], check=True)
        config.pool_records_dir.mkdir(parents=True)
        shares = {-1: NodeShare(64 * MIB, 64 * MIB)}
        self.record = PoolRecord("p", "tmpfs", PAGE, str(self.mount), shares, "ready", kernel.boot_id())
        (config.pool_records_dir / "p.json").write_bytes(msgspec.json.encode(self.record))
        self.inventory = Inventory(config, Ledger(config.ledger_path, kernel.boot_id()))
        self.prezero = PrezeroCache(config, Ledger(config.ledger_path, kernel.boot_id()), self.inventory)
        self.worker = PrezeroWorker(config, self.inventory, self.prezero)

    def release(self, uuid: str) -> Extent:
        """Release an extent of a domain that is full of its data; return it."""
        path = extent_files.path_of(self.mount, uuid, "pc.ram")
        extent_files.create(path, 8 * PAGE)
        path.write_bytes(b"G" * 8 * PAGE)
        shares = {-1: 8 * PAGE}
        given = Extent(
            1,
            uuid,
            "pc.ram",
            SegmentId("p"),
            path,
            8 * PAGE,
            PAGE,
            "none",
            ExtentState.POPULATED,
            kernel.boot_id(),
            "",
            shares,
        )
        extent_files.remove(path)
        self.prezero.note_release(given)
        return given
