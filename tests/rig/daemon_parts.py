# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the parts of the daemon with pools of tmpfs and a domain, on libvirt's test driver."""

from __future__ import annotations

from pathlib import Path

from tests.rig.domain_documents import UUID
from virt_dmem.allocation.models import Phase
from virt_dmem.config.schema import AdoptRule, Config, DaemonConfig, LibvirtConfig, PrefaultConfig
from virt_dmem.daemon.wiring import Components, build
from virt_dmem.domain_xml.memory_backends import Cell
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.pools import manage
from virt_dmem.units import MIB

__all__ = ["hold_memory", "parts_with_pools"]


def parts_with_pools(
    directory: Path, *, uri: str = "test:///default", rules: tuple[AdoptRule, ...] = ()
) -> Components:
    """Return the parts of a daemon with the pools ``p`` and ``q``; only in a mount namespace of its own.

    libvirt's test driver has one domain, which asks for no pool memory.
    """
    libvirt = directory / "libvirt"
    libvirt.mkdir()
    (libvirt / "qemu.conf").write_text(f'memory_backing_dir = "{libvirt}"\n')
    config = Config(
        daemon=DaemonConfig(state_dir=str(directory / "state"), run_dir=str(directory / "run")),
        libvirt=LibvirtConfig(uri=uri, config_file=str(libvirt / "qemu.conf"), run_dir=str(libvirt)),
        prefault=PrefaultConfig(ready="off"),
        adopt=rules,
    )
    for name in ("p", "q"):
        manage.create(config, name, sizes=16 * MIB, backend="tmpfs")
    return build(config)


async def hold_memory(parts: Components, phase: Phase) -> Path:
    """Let the domain ``vm`` hold 1 MiB of pool ``p``, in that phase of its start; return the file."""
    cells = (Cell("ram-node0", 0, MIB, (), ""),)
    memory = DomainMemory(UUID, "vm", "p", cells, True, True, None, None, None, None)
    await parts.hooks.prepare(memory, lambda _: None)
    parts.ledger.set_phase(UUID, phase)
    (extent,) = parts.ledger.extents_of(UUID)
    return extent.path
