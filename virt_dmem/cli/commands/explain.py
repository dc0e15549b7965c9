# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem explain CODE``."""

from __future__ import annotations

import argparse

from virt_dmem import errors
from virt_dmem.cli.output import Output
from virt_dmem.errors import ExitStatus
from virt_dmem.monitoring.alert_codes import EXPLANATIONS

__all__ = ["explain"]


def explain(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print what the code of an error or an alert means."""
    explanation = errors.explain(args.code, EXPLANATIONS)
    out.text(explanation)
    out.result(code=args.code, explanation=explanation)
    return ExitStatus.DONE
