# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``."""

from __future__ import annotations

import argparse

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import load_config
from virt_dmem.errors import ExitStatus
from virt_dmem.monitoring.checks.suite import Host, Result, Status, run

__all__ = ["check"]


def check(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Look at everything, a line each as it is found, and what to do below it."""
    config = load_config(args.config)
    found: list[tuple[str, Result]] = []
    for item, result in run(Host(config, args.connect or config.libvirt.uri)):
        found.append((item.name, result))
        out.text(f"{result.status.value}  {item.name}: {result.message}")
        if result.hint:
            out.text(f"      {result.hint}")
    out.result(
        checks=[
            {"name": name, "status": result.status.value, "message": result.message, "hint": result.hint}
            for name, result in found
        ]
    )
    failed = any(result.status is Status.FAIL for _, result in found)
    return ExitStatus.CHECK_FAILED if failed else ExitStatus.DONE
