# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of the ``virt-dmem`` command line. Each verb names its handler; ``main`` imports it.

Imports nothing slow: completion, the manual page's test and every command go through here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from virt_dmem import __version__
from virt_dmem.cli import columns
from virt_dmem.cli.help_text import ABOUT
from virt_dmem.errors import UsageError
from virt_dmem.units import parse_duration, parse_size

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

__all__ = ["build_parser"]

_EXIT_STATUS = """\
exit status:
  0  done
  1  failed
  2  the command line makes no sense
  3  a check failed
  4  virt-dmemd does not answer
  5  not enough memory
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other failure, also as JSON."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"See '{self.prog} --help'.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; ``handler`` in its result is ``module:function``."""
    parser = _Parser(
        prog="virt-dmem",
        description="Give libvirt domains memory from pools that cost the host nothing beyond themselves.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_global_options()],
    )
    # the defaults of options that are taken before and after the verb: see _global_options
    parser.set_defaults(json=False, bytes=False, config=None, connect=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=_Parser)
    _check(commands)
    _pool(commands)
    _apply(commands)
    _rewrite(commands)
    _domains(commands)
    _hotplug(commands)
    _watch(commands)
    _config(commands)
    _explain(commands)
    return parser


def _global_options() -> _Parser:
    """Return options for every parser; their defaults are suppressed: a verb's parser must not unset them again."""
    parent = _Parser(add_help=False)
    group = parent.add_argument_group("global options")
    unset = argparse.SUPPRESS
    group.add_argument("--json", action="store_true", default=unset, help="print one JSON object; sizes are bytes")
    group.add_argument("--bytes", action="store_true", default=unset, help="print sizes as numbers of bytes")
    group.add_argument(
        "--connect", "-c", metavar="URI", default=unset, help="libvirt to talk to; if not given, as configured"
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=unset,
        help="instead of /etc/virt-dmem/virt-dmem.toml, and with the conf.d beside it",
    )
    group.add_argument("--version", action="version", version=f"virt-dmem {__version__}")
    return parent


def _verb(
    commands: Commands, name: str, handler: str, summary: str, *, table: columns.Table | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        epilog=columns.describe(table) if table else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_global_options()],
    )
    about = ABOUT.get(parser.prog.removeprefix("virt-dmem "))
    parser.description = "\n\n".join(filter(None, (f"{summary[:1].upper()}{summary[1:]}.", about)))
    parser.set_defaults(handler=handler)
    if table:
        parser.add_argument("--output", "-o", metavar="COLUMNS", help="columns to show, separated by commas")
    return parser


def _group(commands: Commands, name: str, summary: str) -> Commands:
    """Add a command that has verbs of its own, and return where they go."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[:1].upper()}{summary[1:]}.",
        allow_abbrev=False,
        parents=[_global_options()],
    )
    return parser.add_subparsers(metavar="VERB", required=True, dest="verb", parser_class=_Parser)


def _check(commands: Commands) -> None:
    _verb(commands, "check", "check:check", "look whether everything is in its place, and say what to do")
    plan = _verb(
        commands,
        "plan-host",
        "plan_host:plan_host",
        "tell what each kind of memory saves, and how the host is to be booted for it",
        table=columns.PLAN,
    )
    plan.add_argument("--guest-memory", type=parse_size, metavar="SIZE", help="of all guests together")
    grub = plan.add_mutually_exclusive_group()
    grub.add_argument(
        "--write-grub", action="store_true", help="also write what dmemfs needs to /etc/default/grub.d (as root)"
    )
    grub.add_argument("--remove-grub", action="store_true", help="only take that away again (as root)")
    _verb(commands, "savings", "pool:savings", "show what the pools save: gross, left, net", table=columns.SAVINGS)


def _pool(commands: Commands) -> None:
    verbs = _group(commands, "pool", "make, show and give back pools")

    create = _verb(verbs, "create", "pool:create", "take memory from the host and mount it as a pool")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--size", type=parse_size, metavar="SIZE", help="in all, spread evenly over the host's nodes"
    )
    create.add_argument(
        "--node", action="append", default=[], type=_node_share, metavar="N=SIZE", help="so much of node N (repeat)"
    )
    create.add_argument(
        "--backend", choices=("hugetlbfs", "dmemfs", "tmpfs"), default="hugetlbfs", help="kind of memory"
    )
    create.add_argument("--page-size", type=parse_size, metavar="SIZE", help="2M or 1G; 2M if not given")
    create.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="BASE+SIZE",
        help="of dmemfs: this reserved range (repeat); 'auto', the default: those that have no pool yet",
    )
    create.add_argument("--no-hvo", action="store_true", help="leave HVO as it is: keep all struct pages")

    resize = _verb(verbs, "resize", "pool:resize", "make a pool larger or smaller while domains run")
    resize.add_argument("name", metavar="NAME")
    resize.add_argument("--size", type=parse_size, metavar="SIZE", help="in all; spread is what is more or less")
    resize.add_argument(
        "--node", action="append", default=[], type=_node_share, metavar="N=SIZE", help="so much of node N (repeat)"
    )
    resize.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    destroy = _verb(verbs, "destroy", "pool:destroy", "unmount a pool and give its memory back to the host")
    destroy.add_argument("name", metavar="NAME")

    _verb(verbs, "list", "pool:list_pools", "list the pools of this host", table=columns.POOLS)

    show = _verb(verbs, "show", "pool:show", "show one pool, node by node")
    show.add_argument("name", metavar="NAME")

    mount = _verb(verbs, "mount", "pool:mount", "bring a recorded pool back after a boot (for its systemd unit)")
    mount.add_argument("name", metavar="NAME")

    drain = _verb(verbs, "drain", "drain:drain", "give no more memory from a pool; domains that run keep theirs")
    drain.add_argument("name", metavar="NAME")
    either = drain.add_mutually_exclusive_group()
    either.add_argument("--undo", action="store_true", help="give memory from it again")
    either.add_argument("--wait", action="store_true", help="until no domain holds memory of it")


def _node_share(text: str) -> tuple[int, int]:
    node, equals, size = text.partition("=")
    if not (node.isdecimal() and equals):
        raise UsageError(
            f"{text!r} is no share of a node.", hint="Write the node and its size, such as --node 0=4G."
        )
    return int(node), 0 if size == "0" else parse_size(size)


def _apply(commands: Commands) -> None:
    verbs = {
        "apply": "rewrite a domain's persistent XML so that its memory comes from a pool",
        "unapply": "give a domain its own persistent XML back",
    }
    for name, summary in verbs.items():
        verb = _verb(commands, name, f"apply:{name}", summary)
        verb.add_argument("domain", metavar="DOMAIN", help="name, UUID or id")
        if name == "apply":
            verb.add_argument(
                "--pool", metavar="NAME", default="", help="if not given: what the XML says, or the default"
            )
            _extras(verb)
        shown = verb.add_mutually_exclusive_group()
        shown.add_argument("--print-diff", action="store_true", help="print the difference (passwords masked)")
        shown.add_argument("--print-xml", action="store_true", help="print the new XML (passwords masked)")
        verb.add_argument("--dry-run", action="store_true", help="change nothing")


def _extras(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--hotplug-max",
        type=parse_size,
        metavar="SIZE",
        help="prepare it for memory that is attached later; all its memory together is at most this",
    )
    verb.add_argument("--no-monitor", action="store_true", help="do not give QEMU a second monitor for us")


def _rewrite(commands: Commands) -> None:
    verb = _verb(commands, "rewrite", "rewrite:rewrite", "apply as a filter: domain XML from stdin to stdout")
    verb.add_argument("--undo", action="store_true", help="unapply instead")
    verb.add_argument(
        "--migratable",
        action="store_true",
        help="with --undo: of a guest that moves while it runs; what it has now stays, our request goes",
    )
    verb.add_argument("--pool", metavar="NAME", default="", help="pool to ask for")
    _extras(verb)
    verb.add_argument("--print-diff", action="store_true", help="print the difference instead (passwords masked)")


def _domains(commands: Commands) -> None:
    listed = _verb(commands, "list", "listing:list_domains", "list domains that hold memory", table=columns.DOMAINS)
    listed.add_argument(
        "--applied", action="store_true", help="list domains whose persistent XML is rewritten, running or not"
    )
    show = _verb(commands, "show", "domain:show", "show what one domain holds")
    show.add_argument("domain", metavar="DOMAIN", help="name or UUID")
    show.add_argument("--timing", action="store_true", help="how long each step of its last start took")
    reconcile = _verb(
        commands, "reconcile", "domain:reconcile", "bring ledger, pools and live domains together again"
    )
    reconcile.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _hotplug(commands: Commands) -> None:
    attach = _verb(commands, "attach", "hotplug:attach", "give a domain that runs more memory from its pool")
    attach.add_argument("domain", metavar="DOMAIN", help="name or UUID")
    attach.add_argument("--size", type=parse_size, metavar="SIZE", required=True, help="of the memory device")
    attach.add_argument("--type", choices=("dimm", "virtio-mem"), default="dimm", help="kind of memory device")
    attach.add_argument("--cell", type=_number, default=0, metavar="N", help="guest NUMA cell; 0 if not given")
    attach.add_argument("--node", type=_number, metavar="N", help="host node to take it from; else as for its cell")
    attach.add_argument("--persistent", action="store_true", help="also for the domain's next start")
    detach = _verb(commands, "detach", "hotplug:detach", "have a guest let go of a memory device, and free it")
    resize = _verb(commands, "resize", "hotplug:resize", "have a guest plug or unplug memory of virtio-mem")
    for verb in (detach, resize):
        verb.add_argument("domain", metavar="DOMAIN", help="name or UUID")
        verb.add_argument("alias", metavar="ALIAS", help="of the memory device, as 'virt-dmem show' prints it")
        verb.add_argument(
            "--wait", type=parse_duration, default=10, metavar="TIME", help="for the guest; 10s if not given"
        )
    resize.add_argument(
        "--size", type=_size_or_nothing, metavar="SIZE", required=True, help="what is to be plugged"
    )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{text!r} is no number.", hint="Nodes and cells are counted from 0.")
    return int(text)


def _size_or_nothing(text: str) -> int:
    return 0 if text == "0" else parse_size(text)


def _watch(commands: Commands) -> None:
    _verb(commands, "alerts", "watch:alerts", "show what is not as it should be now, and say what to do")
    _verb(commands, "metrics", "watch:metrics", "print metrics in Prometheus' text format")
    pause = _verb(commands, "pause-apply", "watch:pause_apply", "have virt-dmemd rewrite no domain by itself")
    how_long = pause.add_mutually_exclusive_group()
    how_long.add_argument(
        "--for", dest="seconds", type=parse_duration, default=0, metavar="TIME", help="such as 30m, 1h or 2d"
    )
    how_long.add_argument("--resume", action="store_true", help="go on, also with what was defined meanwhile")
    report = _verb(
        commands, "report", "report:report", "pack up what support needs to know; no guest memory, no secrets"
    )
    report.add_argument(
        "--file", "-o", type=Path, metavar="FILE", help="a new .tar.gz or .tar.xz; made here if not given"
    )


def _config(commands: Commands) -> None:
    config = _group(commands, "config", "show the configuration that is in force")
    show = _verb(config, "show", "config:show", "print every key of the configuration with its value")
    show.add_argument("--origin", action="store_true", help="also the file that set it, or 'default'")


def _explain(commands: Commands) -> None:
    shells = _verb(
        commands, "completion", "completion:completion", "print what a shell needs to complete our words"
    )
    shells.add_argument("shell", choices=("bash", "zsh"))
    verb = _verb(commands, "explain", "explain:explain", "say what the code of an error or alert means")
    verb.add_argument("code", metavar="CODE")
