# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter. It contacts no daemon and no libvirt, and reads two records at most.

When it rejects its input, stdout stays empty.
"""

from __future__ import annotations

import os
import sys

from virt_dmem.cli.arguments import add_hotplug_and_monitor
from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from msgspec import UnsetType

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT = """\
It contacts neither virt-dmemd nor libvirt. If it can read the pool's record, it
rejects what cannot work with that pool; otherwise it notes what it could not
check. If another tool removed the request from XML that was rewritten, it is put
back first. Passwords are kept: feed it the output of 'virsh dumpxml --inactive
--security-info'. Without options, XML of a domain that a rule of [[adopt]] takes
is left unchanged.

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
    """Declare the options; the file is accepted to say that there is none."""
    import argparse

    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
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
    import shlex

    from virt_dmem.cli.output import unified_diff
    from virt_dmem.config.schema import load_config
    from virt_dmem.domain_xml import rewrite as rewriting
    from virt_dmem.domains.apply import ApplyOptions, adopted_by, apply_offline, recovered
    from virt_dmem.os_errors import naming

    if args.file is not None:
        raise UsageError(
            "The filter reads domain XML from standard input, and takes no file name.",
            hint=f"Run: virt-dmem rewrite < {shlex.quote(args.file)} > NEW; see 'virt-dmem rewrite --help'.",
        )
    if args.migratable and not args.undo:
        raise UsageError("--migratable requires --undo.", hint="See 'virt-dmem rewrite --help'.")
    config = load_config(args.config)
    with naming(os.path.realpath("/proc/self/fd/0")):
        given = sys.stdin.buffer.read()
    printed = rewriting.reprint(given)
    before = recovered(config, given)
    if args.undo:
        after = rewriting.unapply(before, keep_request=not args.migratable, running=args.migratable)
    elif (options := ApplyOptions(args.pool, args.hotplug_max, args.no_monitor)) == ApplyOptions() and (
        rule := adopted_by(config, given)
    ):
        after = given
        out.note(f"Rule {rule} of [[adopt]] takes this domain on this host: its XML needs no rewrite.")
    else:
        after, unchecked = apply_offline(config, before, options)
        if unchecked:
            out.note(f"Not checked, because the pool's record cannot be read here: {unchecked}.")
    if args.print_diff:
        difference = unified_diff(printed, rewriting.reprint(after))
        out.result(changed=after != given, diff=difference)
        if difference:
            out.text(difference)
    elif out.as_json:
        out.result(changed=after != given, xml=rewriting.reprint(after).decode())
    else:
        out.document(after)
    return ExitStatus.DONE


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
