# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the two control sockets reachable: root's, which systemd may pass, and that of the readers.

A socket whose file somebody removed cannot be reached any more, by hooks neither, so no guest would start; and
systemd does not notice. A new one is created in its place, and the old one stays for what is connected.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.ipc.listener import FIRST_SYSTEMD_FD, create_listener
from virt_dmem.monitoring.alert_codes import CONTROL_SOCKET_GONE
from virt_dmem.monitoring.watch.base import Deviation, Sight
from virt_dmem.replaced_file import file_identity
from virt_dmem.runtime.aio import in_loop

__all__ = ["PROGRAM", "ControlSockets"]

PROGRAM = "virt-dmemd"


class _Place:
    """The file of a listening socket.

    :param passed: The listening socket, if it is there already.
    """

    def __init__(self, path: Path, group: int | None, passed: socket.socket | None) -> None:
        self.path = path
        self._group = group
        if passed is not None and _is_reachable(path):
            self.listener = passed
            self._file = file_identity(path)
        else:  # one that was passed may have lost its file while no virt-dmemd ran
            self.renew()

    def renew(self) -> None:
        """Create a new socket, instead of what is there.

        :raise ConfigError: When it cannot be created.
        """
        self.listener = create_listener(self.path, PROGRAM, group=self._group)
        self._file = file_identity(self.path)

    def fault(self) -> str:
        """Return what is wrong with the file, to continue a sentence; empty: nothing."""
        found = file_identity(self.path)
        if found == self._file:
            return ""
        return "is gone" if found is None else "was replaced by another file"

    def is_gone(self) -> bool:
        """Return whether there is nothing in its place."""
        return not os.path.lexists(self.path)


class ControlSockets:
    """The listening sockets of a daemon.

    :param config: Where they are, and whose the second one is.
    :raise ConfigError: When a socket cannot be created.
    """

    def __init__(self, config: Config) -> None:
        group = None
        with suppress(KeyError):
            group = grp.getgrnam(config.daemon.group).gr_gid
        self._root = _Place(config.socket_path, None, _passed_by_systemd())
        self._readers = _Place(config.readers_socket_path, group, None)
        self._on_renewed: Callable[[socket.socket, bool], None] = lambda _listener, _readers: None

    @property
    def root(self) -> socket.socket:
        """Root's."""
        return self._root.listener

    @property
    def readers(self) -> socket.socket:
        """That of the readers."""
        return self._readers.listener

    def on_renewed(self, serve: Callable[[socket.socket, bool], None]) -> None:
        """Have ``serve`` called with each new socket, and whether it is that of the readers."""
        self._on_renewed = serve

    def deviations(self, sight: Sight) -> Iterator[Deviation]:
        """Yield each socket that cannot be reached; see ``watch.base.Look``."""
        del sight
        for place, meaning in (
            (self._root, "no hook and no command reaches virt-dmemd there, and no guest with pool memory starts"),
            (self._readers, "only root reaches virt-dmemd"),
        ):
            if fault := place.fault():
                yield Deviation(
                    CONTROL_SOCKET_GONE,
                    str(place.path),
                    f"The control socket {place.path} {fault}: {meaning}.",
                    "Run 'systemctl restart virt-dmemd.socket'; running guests are not affected.",
                    # whoever put another file there may mean it
                    repair=in_loop(partial(self._renew, place)) if place.is_gone() else None,
                )

    def _renew(self, place: _Place) -> None:
        """Create a new socket, in the event loop: that changes the umask of the process for a moment."""
        if place.is_gone():
            place.renew()
            self._on_renewed(place.listener, place is self._readers)


def _passed_by_systemd() -> socket.socket | None:
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and int(os.environ.get("LISTEN_FDS", "0")) >= 1:
        return socket.socket(fileno=FIRST_SYSTEMD_FD)
    return None


def _is_reachable(path: Path) -> bool:
    """Return whether somebody listens at the path; full queues count."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        return caller.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EINPROGRESS)
