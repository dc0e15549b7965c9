# SPDX-License-Identifier: GPL-2.0-or-later
"""List what others can change on the host; docs/guide/operations.md has the same table, with what is put right."""

from __future__ import annotations

from virt_dmem.monitoring.watch import huge_pages, hvo, mounts, nodes, pages_socket, thp
from virt_dmem.monitoring.watch.base import Watch
from virt_dmem.monitoring.watch.installed import InstalledFiles
from virt_dmem.monitoring.watch.libvirt_settings import LibvirtSettings
from virt_dmem.monitoring.watch.nodes import MemoryBlocks

__all__ = ["WATCHES"]

WATCHES = (
    Watch.of("HVO", hvo.deviations),  # first: huge pages may have to be allocated again
    Watch.of("huge pages", huge_pages.deviations),
    Watch.of("mounts of pools", mounts.deviations),
    Watch.of("nodes", nodes.deviations),
    Watch("transparent huge pages", lambda: thp.deviations, recorded=False),  # check's line dmemfs has it
    Watch("the socket of virt-dmem-pages", lambda: pages_socket.deviations, recorded=False),  # its line has it
    Watch("memory blocks", MemoryBlocks, recorded=False),
    Watch("installed files", InstalledFiles),
    Watch("settings of libvirt", LibvirtSettings),
)
