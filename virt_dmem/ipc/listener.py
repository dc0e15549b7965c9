# SPDX-License-Identifier: GPL-2.0-or-later
"""Create the sockets that programs of virt-dmem listen on where systemd passes none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from virt_dmem.errors import ConfigError
from virt_dmem.os_errors import remedy

__all__ = ["FIRST_SYSTEMD_FD", "create_listener"]

FIRST_SYSTEMD_FD = 3
"""The first that systemd passes (sd_listen_fds(3))."""


def create_listener(path: Path, program: str, *, group: int | None = None) -> socket.socket:
    """Return a new listening socket of ``program``, accessible to root and to the group, if there is one.

    :raise ConfigError: When it cannot be created.
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
        listener.close()
        raise ConfigError(
            f"The control socket {path} cannot be created: {error.strerror or error}.",
            hint=remedy(error, path) or f"Run {program} as root, and check [daemon] run_dir in virt-dmem.toml.",
        ) from error
    return listener
