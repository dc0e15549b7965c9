# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``virt-dmem-pages``, the only part of virt-dmem that takes huge pages while domains start and stop.

It is started by its socket, and ends when nobody asked for a minute; without systemd it runs in the foreground. At
each start it undoes what an earlier one was killed in.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from virt_dmem.config.schema import Config, load_config
from virt_dmem.errors import DmemError, ExitStatus
from virt_dmem.ipc.listener import FIRST_SYSTEMD_FD, create_listener
from virt_dmem.os_errors import explained
from virt_dmem.page_service.server import PageServer
from virt_dmem.pools.elastic import change
from virt_dmem.runtime.log_format import set_up_logging
from virt_dmem.version import ShowVersion

__all__ = ["build_parser", "main"]

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="virt-dmem-pages",
        description="Takes huge pages for elastic pools, and gives them back, for virt-dmemd.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration file, instead of /etc/virt-dmem/virt-dmem.toml"
    )
    parser.add_argument("--version", action=ShowVersion)
    return parser


def _listener(config: Config) -> tuple[socket.socket, float | None]:
    """Return the listening socket, and after how many idle seconds to end: never, where systemd did not pass it.

    :raise ConfigError: When it cannot be created.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and int(os.environ.get("LISTEN_FDS", "0")) >= 1:
        return socket.socket(fileno=FIRST_SYSTEMD_FD), IDLE_SECONDS
    return create_listener(config.pages_socket_path, "virt-dmem-pages"), None


def main(argv: list[str] | None = None) -> int:
    """Serve in the foreground; return the exit status."""
    arguments = build_parser().parse_args(argv)
    set_up_logging("info")
    try:
        config = load_config(arguments.config)
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # a change of a pool goes on
        for failure in change.settle(config):
            log.warning("%s", failure)
        listener, idle_seconds = _listener(config)
        PageServer(config, listener, readable, idle_seconds).run()
    except (DmemError, OSError) as error:
        failure = explained(error) if isinstance(error, OSError) else error
        log.error("%s %s", failure.message, failure.hint)  # noqa: TRY400 -- no traceback for a user's error
        return failure.exit_status
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
