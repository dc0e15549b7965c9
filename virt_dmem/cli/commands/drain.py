# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool drain``: let a pool run empty."""

from __future__ import annotations

import argparse
import time
from typing import Any

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import load_config
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

__all__ = ["drain"]


def drain(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have virt-dmemd give no more memory from a pool, or give it again; with ``--wait`` until nobody holds any."""
    with Client(load_config(args.config).socket_path) as daemon:
        daemon.call("DrainPool", name=args.name, undo=args.undo)
        pool = _pool(daemon, args.name)
        if args.undo:
            out.text(f"Pool {args.name} gives memory again.")
        else:
            _report(out, pool)
        while args.wait and pool["reserved_bytes"]:
            time.sleep(1)
            before, pool = pool, _pool(daemon, args.name)
            if pool["reserved_bytes"] != before["reserved_bytes"]:
                _report(out, pool)
    out.result(pool=pool)
    return ExitStatus.DONE


def _pool(daemon: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(pool for pool in daemon.call("ListPools")["pools"] if pool["name"] == name)
    return found


def _report(out: Output, pool: dict[str, Any]) -> None:
    left = pool["reserved_bytes"]
    holds = f"domains hold {out.size(left)} of it" if left else "nobody holds memory of it"
    out.text(f"Pool {pool['name']} is draining: {holds}.")
