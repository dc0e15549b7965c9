# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect commands to virt-dmemd."""

from __future__ import annotations

from virt_dmem.config.schema import load_config
from virt_dmem.ipc.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["connect"]


def connect(args: argparse.Namespace) -> Client:
    """Return a connection to virt-dmemd at the configured socket.

    :raise DaemonUnreachable: When nobody listens.
    """
    return Client(load_config(args.config).socket_path)
