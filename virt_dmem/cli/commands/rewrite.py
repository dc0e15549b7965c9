# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter. It contacts no daemon and no libvirt, and reads at most the pool's record.

When it rejects its input, stdout stays empty.
"""

from __future__ import annotations

import sys

from virt_dmem.cli.arguments import add_hotplug_and_monitor
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus, PoolNotFound, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from msgspec import UnsetType

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config

__all__ = ["COMMANDS"]

_ABOUT = """\
It contacts neither virt-dmemd nor libvirt. If it can read the pool's record, it
rejects what cannot work with that pool; otherwise it notes what it could not
check. Passwords are kept: feed it the output of 'virsh dumpxml --inactive
--security-info'.

To migrate a domain to a host without virt-dmem, use 'virsh migrate --xml FILE
--persistent-xml FILE': the first is the output of 'rewrite --undo --migratable'
for 'virsh dumpxml --migratable --security-info', the second that of 'rewrite
--undo' for 'virsh dumpxml --inactive --security-info'. libvirt does not allow
the kind of memory to change during migration: until the next start it is a file
in the destination's memory_backing_dir, which should be a tmpfs there."""


class RewriteAnswer:
    """`rewrite`: either the XML or, with --print-diff, the difference."""

    changed: Annotated[bool, says("the XML differs from the input")]
    xml: Annotated[str, says("the new XML, including passwords")] | UnsetType
    diff: Annotated[str, says("the difference, passwords masked")] | UnsetType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--undo", action="store_true", help="unapply instead")
    parser.add_argument(
        "--migratable",
        action="store_true",
        help="with --undo, for live migration: keep the current memory backing, remove only the request",
    )
    parser.add_argument("--pool", metavar="NAME", default="", help="pool to request")
    add_hotplug_and_monitor(parser)
    parser.add_argument("--print-diff", action="store_true", help="print the difference instead (passwords masked)")


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Rewrite the domain XML on stdin to stdout."""
    from pathlib import Path

    from virt_dmem.cli.output import unified_diff
    from virt_dmem.config.schema import load_config
    from virt_dmem.domain_xml import rewrite as rewriting

    config = load_config(args.config)
    before = sys.stdin.buffer.read()
    printed = rewriting.reprint(before)
    if args.migratable and not args.undo:
        raise UsageError("--migratable requires --undo.", hint="See 'virt-dmem rewrite --help'.")
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
    """Return whether the pool's memory can be locked and pinned, by its record where that can be read.

    The XML may be for another host, or for a pool that does not exist yet: then it is rewritten all the same, with
    a note about what some pools would reject.
    """
    from virt_dmem.domain_xml import rewrite as rewriting
    from virt_dmem.pools.backends.table import backend
    from virt_dmem.pools.registry import choose

    try:
        kind = backend(choose(config, args.pool or rewriting.request_of(xml)).backend)
    except (PoolNotFound, OSError):
        if doubtful := rewriting.doubtful(xml):
            out.note(f"Not checked, because the pool's record cannot be read: {doubtful}.")
        return True, True
    return kind.lockable, kind.has_struct_pages


COMMANDS = (
    Command(
        "rewrite",
        "apply as a filter: rewrite domain XML from stdin to stdout",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="RewriteAnswer",
    ),
)
