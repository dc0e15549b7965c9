# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the daemon's periodic work, each kind in a loop of its own, until it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from virt_dmem.daemon.systemd import notify, watchdog_seconds
from virt_dmem.daemon.wiring import Components
from virt_dmem.domains import adoption
from virt_dmem.errors import DmemError
from virt_dmem.host import huge_pages, writes
from virt_dmem.monitoring.metrics import write_textfile
from virt_dmem.runtime.deadline import within
from virt_dmem.runtime.rate_limit import RateLimitedLog

__all__ = ["all_loops", "reconcile_host", "restart_on_error", "write_first_marks"]

log = logging.getLogger(__name__)
limited_log = RateLimitedLog(log)

HOUSEKEEPING_SECONDS = 5.0
HOUSEKEEPING_SHARE = 0.02
"""Limit of the share of time spent in housekeeping, unless a round takes more than 0.2 s: some only wait."""
HOUSEKEEPING_MOST_SECONDS = 10.0
WATCH_SECONDS = 1.0
WATCH_PAUSE_SECONDS = 0.01
"""Least time between two looks at the host, whoever writes to it however often."""
SETTLE_SECONDS = 0.1
"""Delay before a change is acted on: domains that start and stop in a row come first."""
RETRY_REQUESTS_SECONDS = 60.0
"""A template or libvirt may be the reason; changes of domains and pools are acted on at once."""
RESTART_SECONDS = 1.0
"""Delay before a loop that ended by an unexpected error is restarted."""

Loop = Callable[[], Coroutine[Any, Any, None]]


def all_loops(parts: Components) -> list[Loop]:
    """Return the loops of a daemon."""
    of_parts = (
        host_watch_loop,
        housekeeping_loop,
        doubtful_loop,
        domain_list_loop,
        monitors_loop,
        prezero_loop,
        settle_loop,
        returning_loop,
        alerts_loop,
        retry_requests_loop,
    )
    loops: list[Loop] = [*(partial(loop, parts) for loop in of_parts), watchdog_loop, parts.libvirt_events.run]
    if parts.config.metrics.textfile:
        loops.append(partial(textfile_loop, parts))
    return loops


async def restart_on_error(loop: Loop) -> None:
    """Run a loop, and restart it after an unexpected error: the daemon must keep serving hooks."""
    while True:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 -- whatever it is
            limited_log(logging.ERROR, loop, "unexpected error, virt-dmemd continues: %s", _traceback(error))
        await asyncio.sleep(RESTART_SECONDS)


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


async def host_watch_loop(parts: Components) -> None:
    """Compare the host with its records every second, and at once when somebody sets its number of huge pages.

    A guest that gives memory back may need it again before the second is over.
    """
    with writes.heard(huge_pages.number_files()) as written:
        while True:
            written.clear()
            try:
                await parts.host_watch.look()
            except (DmemError, OSError) as error:
                limited_log(logging.WARNING, "watch", "the host cannot be compared with its records: %s", error)
            await asyncio.sleep(WATCH_PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await written.wait()


async def housekeeping_loop(parts: Components) -> None:
    """Retry what failed earlier: a disk was full, a process still mapped a file.

    With 10 000 domains a round takes half a second, and holds Python's lock: a small share of the time is enough.
    """
    took = 0.0
    while True:
        pause = min(took / HOUSEKEEPING_SHARE, HOUSEKEEPING_MOST_SECONDS)
        await asyncio.sleep(max(HOUSEKEEPING_SECONDS, pause))
        began = time.monotonic()
        try:
            parts.service.end_due_pause()
        except DmemError as error:
            log.warning("%s", error)
        restore_marks(parts)
        await parts.lost_requests.retry()
        await reconcile_host(parts)
        took = time.monotonic() - began


def write_first_marks(parts: Components) -> None:
    """Write the marks of rules for the hook, before it can connect; housekeeping retries what fails."""
    with _logged_marks():
        adoption.write_marks(parts.config)


def restore_marks(parts: Components) -> None:
    """Write the marks of rules again that somebody removed or changed: without them no rule takes a domain."""
    with _logged_marks():
        if adoption.write_marks(parts.config):
            log.warning("the marks of rules for the hook were changed by others; written again")


@contextmanager
def _logged_marks() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        limited_log(logging.WARNING, "marks", "the marks of rules cannot be written for the hook: %s", error)


async def reconcile_host(parts: Components) -> None:
    """Reconcile what can be without libvirt; log an error, as the daemon must keep serving, and tries again."""
    try:
        for action in await parts.reconciler.host_stage():
            log.warning("reconcile: %s", action)
    except Exception as error:  # the daemon must not end: hooks would fail
        log.warning("reconcile: %s", error, exc_info=None if isinstance(error, DmemError | OSError) else error)


async def doubtful_loop(parts: Components) -> None:
    """Finish what the hooks of ended domains could not do, soon after libvirt reports their end."""
    while True:
        actions: list[str] = []
        try:
            parts.guest_events.record_failures()
            actions = await parts.reconciler.doubtful_stage()
        except (DmemError, OSError) as error:
            log.warning("domains that ended cannot be looked for: %s", error)
        for action in actions:
            log.warning("reconcile: %s", action)
        if not actions:  # else there may be more
            with suppress(TimeoutError):
                async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                    await parts.reconciler.woken.wait()
        await asyncio.sleep(SETTLE_SECONDS)


async def returning_loop(parts: Components) -> None:
    """Give back what elastic pools took and no domain needs any more; look more often while there is some."""
    while True:
        await parts.returning.wait(WATCH_SECONDS if parts.returning.watched() else HOUSEKEEPING_SECONDS)
        try:
            await parts.returning.round()
        except (DmemError, OSError) as error:
            limited_log(logging.WARNING, "elastic", "elastic pools cannot be looked at: %s", error)


async def settle_loop(parts: Components) -> None:
    """Check, soon after guests gave memory back, whether all of it is free; less often while some is not."""
    pause = SETTLE_SECONDS
    while True:
        try:
            async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                await parts.reconciler.wait_unsettled()
        except TimeoutError:
            pause = SETTLE_SECONDS
            continue
        began = time.monotonic()
        try:
            await parts.reconciler.settle()
        except (DmemError, OSError) as error:
            log.warning("cannot check for freed memory: %s", error)
        pause = max(min(2 * pause, HOUSEKEEPING_SECONDS), (time.monotonic() - began) / HOUSEKEEPING_SHARE)
        await asyncio.sleep(pause)


async def domain_list_loop(parts: Components) -> None:
    """Keep the list of domains up to date before it is requested, so that a request does not delay hooks."""
    while True:
        try:
            more = parts.domain_list.refresh()
        except DmemError as error:
            log.debug("list of domains: %s", error)  # reported to the caller of ListDomains
            more = False
        await asyncio.sleep(SETTLE_SECONDS / 10 if more else HOUSEKEEPING_SECONDS)


async def retry_requests_loop(parts: Components) -> None:
    """Consider domains again whose requests for pool memory could not be fulfilled."""
    while True:
        await asyncio.sleep(RETRY_REQUESTS_SECONDS)
        parts.libvirt_events.retry_waiting()


async def monitors_loop(parts: Components) -> None:
    """Connect to the monitors of running domains, soon after their start."""
    while True:
        try:
            parts.follow_monitors()
        except DmemError as error:
            log.warning("monitors: %s", error)
        await asyncio.sleep(1)


async def prezero_loop(parts: Components) -> None:
    """Pre-zero memory as soon as something changed; while the host is busy, try again each second."""
    while True:
        parts.prezero.changed.clear()
        busy = False
        try:
            busy = await parts.prezero_worker.run()
        except (DmemError, OSError) as error:
            log.warning("free memory cannot be pre-zeroed: %s", error)
        with suppress(TimeoutError):
            async with asyncio.timeout(1 if busy else HOUSEKEEPING_SECONDS):
                await parts.prezero.changed.wait()
        await asyncio.sleep(SETTLE_SECONDS)


async def alerts_loop(parts: Components) -> None:
    """Evaluate the alerts soon after something changed, and periodically; at most once a second."""
    reported = ""
    while True:
        try:
            parts.alerts.refresh()
            problem = ""
        except (DmemError, OSError) as error:
            problem = f"alerts cannot be evaluated: {error}"
        if problem != reported:
            log.warning("%s", problem or "alerts are evaluated again")
        reported = problem
        await asyncio.sleep(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                await parts.alerts.changed.wait()
        parts.alerts.changed.clear()


async def textfile_loop(parts: Components) -> None:
    """Write the metrics to a file; log once when that fails, and once when it works again."""
    path, reported = Path(parts.config.metrics.textfile), ""
    while True:
        try:
            text = parts.metrics.exposition()
            await within(partial(write_textfile, path, text), f"textfile {path}")
            problem = ""
        except (DmemError, OSError) as error:
            problem = f"the metrics cannot be written to {path}: {error}"
        if problem != reported:
            log.warning("%s", problem or f"the metrics are written to {path} again")
        reported = problem
        await asyncio.sleep(max(1, parts.config.metrics.interval_seconds))


async def watchdog_loop() -> None:
    """Tell systemd's watchdog that the event loop is running."""
    interval = watchdog_seconds()
    while True:
        await asyncio.sleep(interval / 2 if interval else 3600)
        if interval:
            notify("WATCHDOG=1")
