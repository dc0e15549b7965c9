# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch the socket of virt-dmem-pages: without it elastic pools take no memory, and only systemd creates it."""

from __future__ import annotations

from collections.abc import Iterator

from virt_dmem.monitoring.alert_codes import CONTROL_SOCKET_GONE
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.pools.backends.hugetlbfs_record import HugetlbfsRecord

__all__ = ["START", "deviations"]

START = "Run 'systemctl enable virt-dmem-pages.socket', then 'systemctl restart virt-dmem-pages.socket'."
"""A socket unit whose file was removed counts as started, so that 'start' does nothing."""


def deviations(sight: Sight) -> Iterator[Deviation]:
    """Yield a deviation if there are elastic pools, and nothing at its path."""
    pools = {record.pool for record in sight.records if isinstance(record, HugetlbfsRecord) and record.elastic}
    path = sight.root / str(sight.config.pages_socket_path).lstrip("/")
    if pools and not path.exists():
        yield Deviation(
            CONTROL_SOCKET_GONE,
            str(sight.config.pages_socket_path),
            f"The socket of virt-dmem-pages, {path}, is gone: elastic pool {', '.join(sorted(pools))} takes no"
            " memory for domains, and gives none back.",
            START,
        )
