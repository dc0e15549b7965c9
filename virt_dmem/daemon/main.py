# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``virt-dmemd``, the only writer of the pools' files and of the ledger.

It is ready as soon as its socket answers and all that needs no libvirt is reconciled. libvirt may come later, or
never: hooks of autostarted guests run while libvirtd itself is still starting. Runs in the foreground, with
systemd (socket, notify, watchdog) or without.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from virt_dmem.config.schema import Config, load_config
from virt_dmem.daemon.control_sockets import PROGRAM, ControlSockets
from virt_dmem.daemon.loops import all_loops, reconcile_host, restart_on_error, write_first_marks
from virt_dmem.daemon.own_files import own_files
from virt_dmem.daemon.systemd import notify
from virt_dmem.daemon.wiring import Components, build
from virt_dmem.errors import ConfigError, DmemError, ExitStatus
from virt_dmem.host import uevents
from virt_dmem.ipc.server import ControlServer
from virt_dmem.monitoring.watch.base import Watch
from virt_dmem.os_errors import explained
from virt_dmem.pools.lock import unless_locked
from virt_dmem.replaced_file import remove_unfinished
from virt_dmem.runtime.aio import cancel_and_wait
from virt_dmem.runtime.log_format import set_up_logging
from virt_dmem.text import counted
from virt_dmem.version import ShowVersion

__all__ = ["main", "build_parser", "serve", "shut_down"]

log = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""Limit of the shutdown; then we exit as if killed. Less than systemd's timeout, to log what takes longer."""
SWITCH_SECONDS = 0.0005
"""How long a worker thread may hold Python's lock while the event loop wants it: a hook needs it after each
system call, and would wait 5 ms each time for a thread that processes many files."""


def _take_lock(config: Config) -> None:
    """Take the lock of the ledger, to be its only daemon; it is held until the process ends.

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
            f"Another virt-dmemd is running with {state}.", hint="Stop it first: systemctl stop virt-dmemd.service."
        ) from error


def remove_unfinished_files(config: Config) -> None:
    """Remove the files that kills of virt-dmemd, or of commands that change pools, left half-written."""
    state = Path(config.daemon.state_dir)
    for directory in (state, state / "applied"):
        remove_unfinished(directory)
    with suppress(OSError), unless_locked(config) as mine:
        if mine:
            remove_unfinished(config.pool_records_dir)


async def serve(config: Config) -> None:
    """Serve root on one socket and readers on another, until SIGTERM or SIGINT; neither affects guests.

    From the first connection on, nothing that the kernel reports is missed.

    :raise ConfigError: When a socket cannot be created.
    """
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    parts = build(config)
    write_first_marks(parts)
    with uevents.watched(parts.note_hotplug):
        sockets = ControlSockets(config)
        server = ControlServer(sockets.root, sockets.readers, parts.interface, config.daemon.group)
        sockets.on_renewed(server.listen_also)
        parts.host_watch.add(Watch("control sockets", lambda: sockets.deviations, recorded=False))
        parts.host_watch.add(Watch("the ledger", lambda: own_files(config, parts.ledger), recorded=False))
        await _serve_until(end, parts, server)


async def _serve_until(end: asyncio.Event, parts: Components, server: ControlServer) -> None:
    await reconcile_host(parts)
    server.start()
    tasks = [asyncio.create_task(restart_on_error(loop)) for loop in all_loops(parts)]
    notify("READY=1")
    parts.service.note_pools()
    log.info("serving %s", counted(len(parts.service.list_pools()), "pool"))

    stopping = asyncio.create_task(end.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    notify("STOPPING=1")
    # an interrupted prepare rolls back, so the ledger is closed after it
    await shut_down(server.stop(), cancel_and_wait([stopping, *tasks]), parts.close())


async def shut_down(*steps: Coroutine[Any, Any, None], seconds: float = STOP_SECONDS) -> None:
    """Run the steps one after another, within ``seconds`` in all; log what takes longer, and leave it."""
    try:
        async with asyncio.timeout(seconds):
            for step in steps:
                await step
    except TimeoutError:
        left = ", ".join(repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})
        log.error("shutdown timed out; to be reconciled at the next start: %s", left)  # noqa: TRY400
        for step in steps:
            step.close()


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser; the manual page is generated from it."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Provides the memory of libvirt guests from pools.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration file, instead of /etc/virt-dmem/virt-dmem.toml"
    )
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument(
        "--log-level", choices=levels, help="lowest level logged to standard error; default: [daemon] log_level"
    )
    parser.add_argument("--version", action=ShowVersion)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the daemon in the foreground; return the exit status."""
    arguments = build_parser().parse_args(argv)
    set_up_logging(arguments.log_level or "info")
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        config = load_config(arguments.config)
        logging.getLogger().setLevel((arguments.log_level or config.daemon.log_level).upper())
        _take_lock(config)
        remove_unfinished_files(config)
        asyncio.Runner().run(serve(config))
    except (DmemError, OSError) as error:
        failure = explained(error) if isinstance(error, OSError) else error
        log.error("%s %s", failure.message, failure.hint)  # noqa: TRY400 -- no traceback for a user's error
        return failure.exit_status
    # A worker thread may wait in libvirt for any time; nothing is lost by not waiting for it.
    logging.shutdown()
    os._exit(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
