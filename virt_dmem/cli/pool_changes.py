# SPDX-License-Identifier: GPL-2.0-or-later
"""Coordinate changes of pools with virt-dmemd, and report memory that the kernel loses in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import Config
from virt_dmem.errors import DaemonUnreachable
from virt_dmem.host import kernel
from virt_dmem.ipc.client import Client
from virt_dmem.pools import prezeroed_files, registry

__all__ = ["PoolDaemon", "refresh_pools", "reporting_lost_pages"]


class PoolDaemon:
    """virt-dmemd, if it listens. One that listens but does not answer may be allocating memory: an error."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def retire(self, name: str) -> None:
        """Stop allocations from a pool or segment; refused while a domain holds memory from it."""
        if client := self._client():
            with client:
                client.call("RetirePool", name=name)

    def reserved(self, pool: str) -> int:
        """Have the records read again; return the bytes that are then reserved."""
        client = self._client()
        if client is None:
            for record in registry.segments(self._config, pool):  # no daemon will
                prezeroed_files.clear(record)
            return 0
        with client:
            client.call("RefreshPools", name=pool)
            return sum(row["reserved_bytes"] for row in client.call("ListPools")["pools"] if row["name"] == pool)

    def _client(self) -> Client | None:
        with suppress(DaemonUnreachable):
            return Client(self._config.socket_path)
        return None


def refresh_pools(config: Config, name: str) -> None:
    """Tell virt-dmemd that a change of a pool ended or failed; one that does not run reads its record later."""
    with suppress(DaemonUnreachable), Client(config.socket_path) as daemon:
        daemon.call("RefreshPools", name=name)


@contextmanager
def reporting_lost_pages(out: Output) -> Iterator[None]:
    """Print a note when the kernel meets bad pages during the block: some kernels do, with HVO."""
    met_before = kernel.bad_pages_met()
    yield
    if not met_before and kernel.bad_pages_met():
        out.note(
            "The kernel found pages in a bad state while freeing huge pages and no longer uses them: a bug of some"
            " kernels with HVO. Look for 'Bad page state' in dmesg; a reboot recovers the memory."
        )
