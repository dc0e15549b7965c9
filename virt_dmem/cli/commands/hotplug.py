# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem attach``, ``detach`` and ``resize``: memory devices of a domain that runs.

virt-dmemd does it. Who interrupts the command undoes an attach that libvirt has not been asked for yet; all else
goes on to its end, and ``virt-dmem show`` tells what became of it.
"""

from __future__ import annotations

import argparse
from typing import Any

from virt_dmem.cli.output import Output
from virt_dmem.cli.progress import progress
from virt_dmem.config.schema import load_config
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

__all__ = ["attach", "detach", "resize"]


def attach(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Give a domain that runs a memory device."""
    wish = {
        "domain": args.domain,
        "size_bytes": args.size,
        "model": args.type,
        "cell": args.cell,
        "node": -1 if args.node is None else args.node,
        "persistent": args.persistent,
    }
    return _change(args, out, "Attach", wish=wish)


def detach(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Ask a guest to let go of a memory device."""
    return _change(args, out, "Detach", domain=args.domain, alias=args.alias, wait=args.wait)


def resize(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have a guest plug or unplug blocks of virtio-mem."""
    return _change(args, out, "Resize", domain=args.domain, alias=args.alias, size_bytes=args.size, wait=args.wait)


def _change(args: argparse.Namespace, out: Output, method: str, **parameters: object) -> ExitStatus:
    change: dict[str, Any] = {}
    with Client(load_config(args.config).socket_path) as daemon, progress(out) as show:
        for answer in daemon.call_more(method, **parameters):
            reply = answer["reply"]
            if reply["done"]:
                change = reply["change"]
            else:
                show(reply["message"], reply["done_bytes"], reply["total_bytes"])
    size = out.size(change["size_bytes"])
    if change["state"] == "pending":
        out.note(change["message"])
        out.text(f"{change['alias']} of {change['name']}: pending.")
    else:
        has = f"has {size} plugged" if change["state"] == "resized" else f"of {size} is {change['state']}"
        out.text(f"{change['alias']} of {change['name']} {has}.")
    out.result(change=change)
    return ExitStatus.DONE
