# SPDX-License-Identifier: GPL-2.0-or-later
"""Coordinate changes of pools with virt-dmemd, and report memory that the kernel loses in them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import Config
from virt_dmem.errors import DaemonUnreachable, PoolBusy, PoolError
from virt_dmem.host import kernel
from virt_dmem.host.hvo_bug import Verdict
from virt_dmem.ipc.client import Client
from virt_dmem.pools import prezeroed_files, registry
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = [
    "PoolDaemon",
    "draining",
    "refresh_pools",
    "reporting_lost_pages",
    "require_nothing_lost",
    "wait_until_empty",
]


class PoolDaemon:
    """virt-dmemd, if it listens, for one change of a pool; use it as a context manager.

    All calls go over one connection: what they forbid virt-dmemd lasts until that is closed, however this process
    ends. A virt-dmemd that listens but does not answer may be allocating memory: an error.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client:
            self._client.close()

    def require_empty(self, pool: str) -> None:
        """Require that no domain holds memory of a pool, without keeping virt-dmemd from anything.

        :raise PoolBusy: When some do, as ``retire`` would say it.
        """
        if client := self._connected():
            held = [
                (domain["name"], extent["size_bytes"])
                for domain in client.call("ListDomains")["domains"]
                for extent in domain["extents"]
                if extent["pool"] == pool
            ]
            if held:
                size = format_size(sum(size for _, size in held))
                raise PoolBusy.held(pool, size, (name for name, _ in held))

    def retire(self, name: str) -> None:
        """Stop allocations from a pool or segment; refused while a domain holds memory from it."""
        if client := self._connected():
            client.call("RetirePool", name=name)

    def limit(self, pool: str, size_bytes: int) -> int:
        """Let no more than ``size_bytes`` of a pool be reserved; return the bytes that are reserved now."""
        if client := self._connected():
            return int(client.call("LimitPool", name=pool, size_bytes=size_bytes)["reserved_bytes"])
        for record in registry.segments(self._config, pool):  # no daemon will
            prezeroed_files.clear(record)
        return 0

    def _connected(self) -> Client | None:
        if self._client is None:
            with suppress(DaemonUnreachable):
                self._client = Client(self._config.socket_path)
        return self._client


def draining(pool: Mapping[str, Any], out: Output) -> str:
    """Return the sentence that says how much of a draining pool, in the form of ``PoolView``, is still held."""
    left = pool["reserved_bytes"]
    holds = f"domains hold {out.size(left)} of it" if left else "no domain holds memory from it"
    return f"Pool {pool['name']} is draining: {holds}."


def wait_until_empty(daemon: Client, pool: str, out: Output, timeout: float | None, then: str) -> dict[str, Any]:
    """Wait until no domain holds memory of a pool that is draining, and tell how much is left.

    :param timeout: In seconds; ``None``: for ever.
    :param then: What becomes of the pool after that time, a sentence.
    :return: The pool, in the form of ``PoolView``.
    :raise PoolBusy: When some is held after that time; the pool is still draining.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    before = None
    while True:
        found: dict[str, Any] = next(one for one in daemon.call("ListPools")["pools"] if one["name"] == pool)
        left = found["reserved_bytes"]
        if left != before:
            out.text(draining(found, out))
        if not left:
            return found
        if ends is not None and time.monotonic() >= ends:
            raise PoolBusy(
                f"Domains still hold {format_size(left)} of pool {pool} after {timeout:g} s.",
                hint=f"{then} 'virt-dmem list' lists them: shut them down, or wait longer.",
            )
        before = left
        time.sleep(1 if ends is None else min(1.0, max(0.01, ends - time.monotonic())))


def refresh_pools(config: Config, name: str) -> None:
    """Tell virt-dmemd that a change of a pool ended or failed; one that does not run reads its record later."""
    with suppress(DaemonUnreachable), Client(config.socket_path) as daemon:
        daemon.call("RefreshPools", name=name)


def require_nothing_lost(out: Output, pool: str, freed: Iterable[tuple[PoolRecord, int]], *, forced: bool) -> None:
    """Warn, or refuse, before memory is given back by a kernel that loses some of it.

    :param freed: Segments, and the bytes of each that are to be given back.
    :param forced: Lose it.
    :raise PoolError: When it would be lost.
    """
    found = [(backend(record.backend).freeing(record), size) for record, size in freed if size > 0]
    lost = sum(size for verdict, size in found if verdict is Verdict.BAD)
    if lost and not forced:
        raise PoolError(
            f"Linux {kernel.release()} loses huge pages that HVO optimized when they are freed: of pool {pool}"
            f" {format_size(lost)} would be freed, and most of that gone until the next boot. Nothing was changed.",
            hint="Boot another kernel ('virt-dmem check', line hvo), or do it right before a reboot with --force.",
        )
    if lost:
        out.note(
            f"Linux {kernel.release()} loses most of the {format_size(lost)} that are freed, until the next boot."
        )
    elif any(verdict is Verdict.SUSPECT for verdict, _ in found):
        out.note(
            f"Linux {kernel.release()} may lose huge pages that HVO optimized when they are freed;"
            " 'virt-dmem check' shows it afterwards, and a reboot recovers them."
        )


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
