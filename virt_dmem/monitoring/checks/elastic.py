# SPDX-License-Identifier: GPL-2.0-or-later
"""Check what elastic pools need: virt-dmem-pages, a kernel that frees huge pages, and one that reports pressure."""

from __future__ import annotations

import socket

from virt_dmem.host import kernel
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.monitoring.watch.pages_socket import START
from virt_dmem.pools.backends.checks import Result, failed, passed, warned
from virt_dmem.pools.backends.hugetlbfs_plan import is_gigantic
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord
from virt_dmem.pools.backends.struct_pages import BASE_PAGE
from virt_dmem.pools.elastic import kernel_bug
from virt_dmem.units import format_size

__all__ = ["elastic_pools"]

ANSWER_SECONDS = 5.0


def elastic_pools(machine: Machine) -> Result:
    """Check that elastic pools can take memory, and give it back."""
    pools = [record for record in machine.records() if isinstance(record, HugetlbfsRecord) and record.elastic]
    if not pools:
        return passed("No pool is elastic.")
    names = ", ".join(sorted({record.pool for record in pools}))
    if losing := sorted({record.pool for record in pools if kernel_bug.loses_pages(record, root=machine.root)}):
        return failed(
            f"Linux {kernel.release(root=machine.root)} loses huge pages that HVO optimized when they are freed:"
            f" elastic pool {', '.join(losing)} takes no more.",
            "Boot a kernel that frees them (line hvo), or create the pool again with --no-hvo while HVO is off.",
        )
    path = machine.path(machine.config.pages_socket_path)
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(ANSWER_SECONDS)
            caller.connect(str(path))
    except OSError as error:
        return failed(
            f"virt-dmem-pages does not listen at {path} ({error.strerror}): elastic pool {names} takes no memory"
            " for domains, and gives none back.",
            START,
        )
    if not (machine.root / "proc/pressure/memory").exists():
        return warned(
            "This kernel does not report pressure (psi=1 on its command line, CONFIG_PSI): elastic pools give back"
            " what lingers only when its time is over, or the host has less available than --keep-free.",
            "Boot with psi=1, or choose a short --linger.",
        )
    gigantic = [record for record in pools if is_gigantic(record.page_size, BASE_PAGE)]
    if gigantic and not kernel.cma_bytes(root=machine.root):
        of_them = ", ".join(sorted({record.pool for record in gigantic}))
        return warned(
            f"This host keeps no memory for pages of {format_size(gigantic[0].page_size)}: elastic pool {of_them}"
            " gets few of them once memory is fragmented.",
            "'virt-dmem plan-host' says what to add to the kernel's command line (hugetlb_cma=), where it can.",
        )
    return passed(f"Elastic pool {names} can take memory, and give it back.")
