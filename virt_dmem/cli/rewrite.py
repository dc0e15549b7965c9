# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter. No daemon, no libvirt; what is refused leaves stdout empty."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from virt_dmem import rewrite as rewriting
from virt_dmem.cli.output import Output, unified_diff
from virt_dmem.config import load_config
from virt_dmem.errors import ExitStatus

__all__ = ["rewrite"]


def rewrite(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite the domain XML on stdin to stdout."""
    config = load_config(args.config)
    before = sys.stdin.buffer.read()
    printed = rewriting.reprint(before)
    if args.undo:
        after = rewriting.unapply(before)
    else:
        after = rewriting.apply(before, pool=args.pool, templates_dir=Path(config.templates_dir))
    if args.print_diff:
        difference = unified_diff(printed, rewriting.reprint(after))
        out.result(changed=after != before, diff=difference)
        if difference:
            out.text(difference)
    elif out.as_json:
        out.result(changed=after != before, xml=rewriting.reprint(after).decode())
    else:
        sys.stdout.buffer.write(after)
        sys.stdout.buffer.flush()
    return ExitStatus.DONE
