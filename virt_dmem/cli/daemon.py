# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect commands to virt-dmemd. Imports nothing slow: ``list --json`` uses it."""

from __future__ import annotations

from virt_dmem.cli.privilege import needs_root
from virt_dmem.config.files import DEFAULT_RUN_DIR, SOCKET_NAME, mentions
from virt_dmem.errors import DaemonDenied
from virt_dmem.ipc.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["connect", "socket_path"]


def connect(args: argparse.Namespace, *, root_for: str = "") -> Client:
    """Return a connection to virt-dmemd at the configured socket.

    :param root_for: What only root may do, as the beginning of a sentence; empty: its group may as well.
    :raise DaemonUnreachable: When nobody listens.
    :raise PermissionRefused: When this user may not connect, and membership of the group would not help.
    """
    from virt_dmem.config.schema import load_config  # noqa: PLC0415 -- 40 ms

    try:
        return Client(load_config(args.config).socket_path)
    except DaemonDenied:
        if not root_for:
            raise
        raise needs_root(root_for) from None


def socket_path(args: argparse.Namespace) -> str:
    """Return the path of virt-dmemd's socket; the configuration is parsed only where it may set it.

    A typo elsewhere in it does not stop monitoring of a running daemon.
    """
    if not mentions("run_dir", args.config):
        return f"{DEFAULT_RUN_DIR}/{SOCKET_NAME}"
    from virt_dmem.config.schema import load_config  # noqa: PLC0415 -- 40 ms

    return str(load_config(args.config).socket_path)
