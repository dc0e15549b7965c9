# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem report``."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import load_config_and_origins
from virt_dmem.errors import ExitStatus, PermissionRefused
from virt_dmem.monitoring.report import Source, write

__all__ = ["report"]


def report(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Pack up what support needs to know."""
    if os.geteuid() != 0:
        raise PermissionRefused(
            "Only root can see all that belongs in a report.", hint="Run the command with sudo."
        )
    config, origins = load_config_and_origins(args.config)
    path = args.file or Path(f"virt-dmem-report-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz")
    names = write(Source(config, origins, args.connect or config.libvirt.uri), path)
    out.text(f"{path}: {len(names)} files. Names and UUIDs of domains are in it; look before you pass it on.")
    out.result(file=str(path), names=names)
    return ExitStatus.DONE
