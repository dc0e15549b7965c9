# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem report``."""

from __future__ import annotations

import time
from pathlib import Path

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus
from virt_dmem.text import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
Written to a new file that only root may read. It contains names and UUIDs of
domains, but no guest memory and no secrets. Requires root."""


class ReportAnswer:
    """`report`."""

    file: Annotated[str, says("path of the archive")]
    names: Annotated[list[str], says("the files in it")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--file",
        "-o",
        type=Path,
        metavar="FILE",
        help="new .tar.gz or .tar.xz file; default: a .tar.gz in the current directory",
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Collect support information in an archive."""
    from virt_dmem.cli.privilege import require_root
    from virt_dmem.config.schema import load_config_and_origins
    from virt_dmem.monitoring.report import Source, write

    require_root("Creating a report")
    config, origins = load_config_and_origins(args.config)
    path = args.file or Path(f"virt-dmem-report-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz")
    names = write(Source(config, origins, args.connect or config.libvirt.uri), path)
    out.text(
        f"{path}: {counted(len(names), 'file')}, with names and UUIDs of domains: review it before you pass it on."
    )
    out.result(file=str(path), names=names)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "report",
        "collect support information in an archive",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="ReportAnswer",
    ),
)
