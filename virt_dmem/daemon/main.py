# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmemd``: the only writer of pools' files and of the ledger.

Ready as soon as its socket answers and what can be mended without libvirt is mended; libvirt comes later, or
never: hooks of autostarted guests run while libvirtd itself is still starting. Runs in the foreground, under
systemd (socket, notify, watchdog) or without.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import grp
import logging
import os
import signal
import socket
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from virt_dmem import __version__
from virt_dmem.aio import cancelled
from virt_dmem.config.schema import Config, MetricsConfig, load_config
from virt_dmem.daemon.auto_apply import AutoApply
from virt_dmem.daemon.libvirt_events import Follower
from virt_dmem.daemon.service import Service
from virt_dmem.daemon.systemd import notify, watchdog_seconds
from virt_dmem.deadline import within
from virt_dmem.errors import ConfigError, DmemError, ExitStatus
from virt_dmem.host import uevents
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.ipc.server import ControlServer
from virt_dmem.monitoring.metrics import write_textfile
from virt_dmem.rate_limit import RateLimitedLog
from virt_dmem.text import clipped, printable

__all__ = ["for_ever", "main", "serve", "in_good_order"]

log = logging.getLogger(__name__)
say = RateLimitedLog(log)

FIRST_SYSTEMD_FD = 3
HOUSEKEEPING_SECONDS = 5.0
HOUSEKEEPING_SHARE = 0.02
"""Of the time, at most, that mending takes, unless a round takes longer than 0.2 s: some wait for others."""
HOUSEKEEPING_MOST_SECONDS = 10.0
SETTLE_SECONDS = 0.1
"""What changed is looked at so much later: domains that start and stop in a row come first."""
AGAIN_SECONDS = 1.0
"""Until work that ended by a fault of ours is begun again."""
STOP_SECONDS = 20.0
"""For so long what goes on may take to end, once it was cancelled. Then we end as if killed: less than systemd's
patience, for the log to say what it was."""
MOST_LOGGED = 8000
"""Characters of one message in the log."""
SWITCH_SECONDS = 0.0005
"""For so long a worker thread may have Python's lock while the event loop wants it: a hook asks for it after each
system call, and would wait 5 ms every time for a thread that goes through many files."""


class _Formatter(logging.Formatter):
    """Makes one line of a message, and nothing that a terminal would obey: names in it are chosen by others."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        record.message = clipped(printable(record.message), MOST_LOGGED)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 -- as logging has it
        return textwrap.indent(printable(super().formatException(ei), keep="\n"), "    ")


class _JournalFormatter(_Formatter):
    """Prefixes each line with its syslog level, which journald takes off again (sd-daemon(3))."""

    LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # noqa: RUF012

    def format(self, record: logging.LogRecord) -> str:
        level = f"<{self.LEVELS.get(record.levelno, 5)}>"
        return level + super().format(record).replace("\n", f"\n{level}")


def _set_up_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    in_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(
        _JournalFormatter("%(message)s")
        if in_journal
        else _Formatter("%(asctime)s virt-dmemd %(levelname)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    sys.excepthook = lambda *error: log.critical("virt-dmemd ends by an error of its own", exc_info=error)


def _listener(config: Config) -> socket.socket:
    """Return the socket systemd gave us, or our own.

    :raise ConfigError: When the socket cannot be made.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and int(os.environ.get("LISTEN_FDS", "0")) >= 1:
        return socket.socket(fileno=FIRST_SYSTEMD_FD)
    return _make_socket(config.socket_path)


def _readers_listener(config: Config) -> socket.socket:
    """Return the socket of those who may only look, made anew.

    :raise ConfigError: When it cannot be made.
    """
    with suppress(KeyError):
        return _make_socket(config.readers_socket_path, grp.getgrnam(config.daemon.group).gr_gid)
    return _make_socket(config.readers_socket_path)


def _make_socket(path: Path, group: int | None = None) -> socket.socket:
    """Return a socket that listens, root's and perhaps a group's.

    :raise ConfigError: When it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        old_umask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_umask)
        if group is not None:
            os.chown(path, 0, group)
            path.chmod(0o660)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        raise ConfigError(
            f"The control socket {path} cannot be made: {error.strerror}.",
            hint="virt-dmemd runs as root; look at [daemon] run_dir in virt-dmem.toml.",
        ) from error
    return listener


def _only_one(config: Config) -> None:
    """Take the lock that makes this the only daemon on this ledger; it is held until the process ends.

    :raise ConfigError: When another one holds it.
    """
    state = Path(config.daemon.state_dir)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError(
            f"Another virt-dmemd already serves {state}.", hint="Stop it first: systemctl stop virt-dmemd.service."
        ) from error


async def serve(config: Config, listener: socket.socket, readers: socket.socket) -> None:
    """Serve root on one socket and readers on another, until SIGTERM or SIGINT; no guest is touched by either."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    service = Service(config)
    with uevents.watched(service.read_nodes_again):
        await _serve_until(end, service, config, listener, readers)


async def _serve_until(
    end: asyncio.Event, service: Service, config: Config, listener: socket.socket, readers: socket.socket
) -> None:
    await _reconcile_host(service)

    async def on_listed(domains: list[DomainInfo], listed_at: int) -> None:
        service.prezero.set_domains(domain.memory for domain in domains if domain.memory)
        for action in await service.reconcile_domains(domains, listed_at):
            log.warning("reconcile: %s", action)

    auto_apply = AutoApply(config, service.watch, lambda outcome: service.metrics.applied.labels(outcome).inc())
    follower = Follower(
        config.libvirt,
        auto_apply,
        service.watch,
        moment=service.moment,
        on_listed=on_listed,
        on_defined=service.prezero.update_domain,
        on_device=service.device,
    )
    service.on_resume = follower.list_anew
    server = ControlServer(listener, readers, service, config.daemon.group)
    server.start()
    work: list[Callable[[], Coroutine[Any, Any, None]]] = [
        *(
            partial(keep, service)
            for keep in (_housekeeping_loop, _keep_listing, _keep_monitors, _keep_ready, _keep_settled, _keep_watch)
        ),
        _keep_watchdog_quiet,
        follower.run,
    ]
    if config.metrics.textfile:
        work.append(partial(_keep_textfile, config.metrics, service))
    tasks = [asyncio.create_task(for_ever(each)) for each in work]
    notify("READY=1")
    log.info("ready with %d pools", len(service.list_pools()))

    stopping = asyncio.create_task(end.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    notify("STOPPING=1")
    # an interrupted prepare rolls back, so the ledger is closed after it
    await in_good_order(server.stop(), cancelled([stopping, *tasks]), service.close())


async def for_ever(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do work that has no end, and begin it again after each fault of ours: hooks must find a daemon."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 -- whatever it is
            say(logging.ERROR, work, "a fault of virt-dmemd, which goes on: %s", _traceback(error))
        await asyncio.sleep(AGAIN_SECONDS)


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


async def in_good_order(*ends: Coroutine[Any, Any, None], seconds: float = STOP_SECONDS) -> None:
    """Bring all to its end, one after another, in so many seconds at most; the log says what takes longer."""
    try:
        async with asyncio.timeout(seconds):
            for end in ends:
                await end
    except TimeoutError:
        left = ", ".join(repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})
        log.error("not waited for any longer, and mended at the next start: %s", left)  # noqa: TRY400
        for end in ends:
            end.close()


async def _housekeeping_loop(service: Service) -> None:
    """Mend from time to time what could not be done at its time: a disk was full, a process still mapped it.

    With 10 000 domains a round takes half a second, of Python's lock too: a small part of the time is enough.
    """
    took = 0.0
    while True:
        pause = min(took / HOUSEKEEPING_SHARE, HOUSEKEEPING_MOST_SECONDS)
        await asyncio.sleep(max(HOUSEKEEPING_SECONDS, pause))
        began = time.monotonic()
        try:
            service.keep_pause()
        except DmemError as error:
            log.warning("%s", error)
        await _reconcile_host(service)
        took = time.monotonic() - began


async def _reconcile_host(service: Service) -> None:
    """Reconcile what can be without libvirt; whatever comes of it, virt-dmemd serves on, and tries again."""
    try:
        for action in await service.reconcile_host():
            log.warning("reconcile: %s", action)
    except Exception as error:  # the daemon must not end for it: hooks would find nobody
        log.warning("reconcile: %s", error, exc_info=None if isinstance(error, DmemError | OSError) else error)


async def _keep_settled(service: Service) -> None:
    """Find out, soon after guests gave memory back, whether all came back; ever more rarely while some does not."""
    pause = SETTLE_SECONDS
    while True:
        try:
            async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                await service.wait_unsettled()
        except TimeoutError:
            pause = SETTLE_SECONDS
            continue
        began = time.monotonic()
        try:
            await service.settle()
        except (DmemError, OSError) as error:
            log.warning("memory that was given back cannot be looked for: %s", error)
        pause = max(min(2 * pause, HOUSEKEEPING_SECONDS), (time.monotonic() - began) / HOUSEKEEPING_SHARE)
        await asyncio.sleep(pause)


async def _keep_listing(service: Service) -> None:
    """Have the list of domains at hand when it is asked for; a hook that comes meanwhile waits for some of it."""
    while True:
        try:
            more = service.keep_listing()
        except DmemError as error:
            log.debug("the list of domains: %s", error)  # who asks for it is told
            more = False
        await asyncio.sleep(SETTLE_SECONDS / 10 if more else HOUSEKEEPING_SECONDS)


async def _keep_monitors(service: Service) -> None:
    """Be connected to the monitors of all domains that run, soon after they do."""
    while True:
        try:
            service.follow_monitors()
        except DmemError as error:
            log.warning("monitors: %s", error)
        await asyncio.sleep(1)


async def _keep_ready(service: Service) -> None:
    """Make memory ready ahead as soon as something changed; while the host is busy, look again each second."""
    while True:
        service.prezero.changed.clear()
        busy = False
        try:
            busy = await service.make_ready()
        except (DmemError, OSError) as error:
            log.warning("free memory cannot be made ready: %s", error)
        with suppress(TimeoutError):
            async with asyncio.timeout(1 if busy else HOUSEKEEPING_SECONDS):
                await service.prezero.changed.wait()
        await asyncio.sleep(SETTLE_SECONDS)


async def _keep_watch(service: Service) -> None:
    """Look for alerts soon after something happened, and from time to time; at most once a second."""
    complaint = ""
    while True:
        try:
            service.list_alerts()
            now = ""
        except (DmemError, OSError) as error:
            now = f"alerts cannot be looked for: {error}"
        if now != complaint:
            log.warning("%s", now or "alerts are looked for again")
        complaint = now
        await asyncio.sleep(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(HOUSEKEEPING_SECONDS):
                await service.watch.changed.wait()
        service.watch.changed.clear()


async def _keep_textfile(config: MetricsConfig, service: Service) -> None:
    """Write the metrics to a file; say once that it cannot be written, and once that it can again."""
    path, complaint = Path(config.textfile), ""
    while True:
        try:
            text = service.metrics.exposition()
            await within(partial(write_textfile, path, text), f"textfile {path}")
            now = ""
        except (DmemError, OSError) as error:
            now = f"the metrics cannot be written to {path}: {error}"
        if now != complaint:
            log.warning("%s", now or f"the metrics are written to {path} again")
        complaint = now
        await asyncio.sleep(max(1, config.interval_seconds))


async def _keep_watchdog_quiet() -> None:
    """Tell systemd that the event loop turns."""
    interval = watchdog_seconds()
    while True:
        await asyncio.sleep(interval / 2 if interval else 3600)
        if interval:
            notify("WATCHDOG=1")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the manual page is made from it."""
    parser = argparse.ArgumentParser(prog="virt-dmemd", description="Keeps the memory of libvirt guests in pools.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of /etc/virt-dmem/virt-dmem.toml")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", default="info", choices=levels, help="what goes to standard error")
    parser.add_argument("--version", action="version", version=f"virt-dmemd {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the daemon in the foreground; return the exit status."""
    arguments = build_parser().parse_args(argv)
    _set_up_logging(arguments.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        config = load_config(arguments.config)
        _only_one(config)
        asyncio.Runner().run(serve(config, _listener(config), _readers_listener(config)))
    except DmemError as error:
        log.error("%s %s", error.message, error.hint)  # noqa: TRY400 -- no traceback for a user's mistake
        return error.exit_status
    # A worker thread may be waiting in libvirt for as long as libvirt likes; nothing is lost by not waiting for it.
    logging.shutdown()
    os._exit(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
