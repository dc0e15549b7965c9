# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask on a terminal before something is done that cannot simply be undone."""

from __future__ import annotations

import sys

from virt_dmem.errors import Cancelled
from virt_dmem.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add_yes", "confirm"]


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add ``--yes``."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask; without a terminal nothing is asked")


def confirm(args: argparse.Namespace, question: str) -> None:
    """Ask a question on the terminal; without one, or with ``--yes``, the answer is yes.

    :raise Cancelled: When the answer is anything else than y or yes.
    """
    if args.yes or not all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr)):  # None where closed
        return
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Cancelled("Cancelled: nothing was changed.", hint="Answer y to do it, or give --yes to not be asked.")
