# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem metrics``."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]


class MetricsAnswer:
    """`metrics`."""

    text: Annotated[str, says("Prometheus text format")]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print virt-dmemd's metrics in Prometheus text format."""
    from virt_dmem.cli.daemon import connect

    with connect(args) as daemon:
        text = daemon.call("ShowMetrics")["text"]
    if not out.as_json:
        out.document(text.encode())
    out.result(text=text)
    return ExitStatus.DONE


COMMANDS = (Command("metrics", "print metrics in Prometheus text format", run, answer="MetricsAnswer"),)
