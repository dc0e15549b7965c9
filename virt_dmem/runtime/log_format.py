# SPDX-License-Identifier: GPL-2.0-or-later
"""Set up logging: to the journal, with its levels, or to a terminal."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from typing import Any

from virt_dmem.text import clipped, printable

__all__ = ["set_up_logging"]

log = logging.getLogger(__name__)

MOST_CHARACTERS = 8000
"""Limit of one message."""


class _Formatter(logging.Formatter):
    """Format a message as one line of printable characters: names in it are chosen by users."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        record.message = clipped(printable(record.message), MOST_CHARACTERS)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 -- as logging has it
        return textwrap.indent(printable(super().formatException(ei), keep="\n"), "    ")


class _JournalFormatter(_Formatter):
    """Prefix each line with its syslog level, which journald strips again (sd-daemon(3))."""

    LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # noqa: RUF012

    def format(self, record: logging.LogRecord) -> str:
        level = f"<{self.LEVELS.get(record.levelno, 5)}>"
        return level + super().format(record).replace("\n", f"\n{level}")


def set_up_logging(level: str) -> None:
    """Log to standard error from ``level`` on, also exceptions that end the process."""
    handler = logging.StreamHandler(sys.stderr)
    in_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(
        _JournalFormatter("%(message)s")
        if in_journal
        else _Formatter("%(asctime)s virt-dmemd %(levelname)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    sys.excepthook = lambda *error: log.critical("virt-dmemd ends: unexpected error", exc_info=error)
