# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter. No daemon, no libvirt, at most a look at the pool's record.

What is refused leaves stdout empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from virt_dmem.cli.output import Output, unified_diff
from virt_dmem.config.schema import Config, load_config
from virt_dmem.domain_xml import rewrite as rewriting
from virt_dmem.errors import ExitStatus, PoolNotFound, UsageError
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.registry import choose

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
        may_lock, may_pin = _limits(args, out, config, before)
        after = rewriting.apply(
            before,
            pool=args.pool,
            may_lock=may_lock,
            may_pin=may_pin,
            hotplug_max=args.hotplug_max,
            monitor=False if args.no_monitor else config.libvirt.monitor or None,
            templates_dir=Path(config.templates_dir),
        )
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


def _limits(args: argparse.Namespace, out: Output, config: Config, xml: bytes) -> tuple[bool, bool]:
    """Tell whether the pool's memory can be locked and pinned: as its record says, where there is one to be read.

    The XML may be for another host, or for a pool that is still to be made: then it is rewritten all the same, and
    what would be refused on some pools is said.
    """
    try:
        kind = backend(choose(config, args.pool or rewriting.request_of(xml)).backend)
    except (PoolNotFound, OSError):
        if doubtful := rewriting.doubtful(xml):
            out.note(f"Not looked at, for the pool's record cannot be read here: {doubtful}.")
        return True, True
    return kind.lockable, kind.has_struct_pages
