# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter. No daemon, no libvirt, at most a look at the pool's record.

What is refused leaves stdout empty.
"""

from __future__ import annotations

import argparse
import sys

from virt_dmem.cli.output import Output, unified_diff
from virt_dmem.config.schema import load_config
from virt_dmem.domain_xml import rewrite as rewriting
from virt_dmem.domains.apply import ApplyOptions, apply_offline
from virt_dmem.errors import ExitStatus, UsageError

__all__ = ["rewrite"]


def rewrite(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite the domain XML on stdin to stdout."""
    config = load_config(args.config)
    before = sys.stdin.buffer.read()
    printed = rewriting.reprint(before)
    if args.migratable and not args.undo:
        raise UsageError("--migratable goes with --undo.", hint="See 'virt-dmem rewrite --help'.")
    if args.undo:
        after = rewriting.unapply(before, keep_request=not args.migratable, running=args.migratable)
    else:
        options = ApplyOptions(args.pool, args.hotplug_max, args.no_monitor)
        after, unchecked = apply_offline(config, before, options)
        if unchecked:
            out.note(f"Not checked, because the pool's record cannot be read here: {unchecked}.")
    if args.print_diff:
        difference = unified_diff(printed, rewriting.reprint(after))
        out.result(changed=after != before, diff=difference)
        if difference:
            out.text(difference)
    elif out.as_json:
        out.result(changed=after != before, xml=rewriting.reprint(after).decode())
    else:
        out.document(after)
    return ExitStatus.DONE
