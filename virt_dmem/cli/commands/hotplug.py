# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem attach``, ``detach`` and ``resize``: memory devices of a running domain.

virt-dmemd does the work. Interrupting the command cancels an attach that libvirt has not been asked for yet;
everything else continues to its end, and ``virt-dmem show`` shows the outcome.
"""

from __future__ import annotations

from virt_dmem.cli.arguments import add_domain, number, size_or_zero
from virt_dmem.cli.command import Command
from virt_dmem.errors import DomainRefused, ExitStatus
from virt_dmem.units import parse_duration, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Any, Literal

    from virt_dmem.cli.json_schema import Uuid, says
    from virt_dmem.cli.output import Output

__all__ = ["COMMANDS"]

_ABOUT_ATTACH = """\
The memory is reserved, placed and populated before QEMU is involved, so the
guest does not stall; then the guest has to bring it online, which most guests
do automatically. The domain must have been prepared by 'apply --hotplug-max'
before it started. Ctrl-C cancels the operation unless libvirt has already been
called; then it continues to its end. A virtio-mem device is attached fully
plugged, and may be resized. Requires root."""
_ABOUT_DETACH = """\
A guest may refuse, or not respond: then the memory stays reserved, the
operation pending, and the memory is freed as soon as the guest releases it,
however long that takes. The exit status is 0 also of a pending operation; --json
says "pending" as its state, and 'virt-dmem events' tells when the memory is
free. A device in the domain's persistent XML is removed from there at once.
Requires root."""
_ABOUT_RESIZE = """\
To plug more, the whole device is reserved and populated first. Unplugged memory
returns to the pool once the guest has unplugged all that was requested, unless
the device spans several nodes. The exit status is 0 also if the guest has not
done so yet; --json says "pending" as the state. Requires root."""


class MemoryChange:
    """The outcome for a memory device of a running domain."""

    uuid: Uuid
    name: Annotated[str, says("name of the domain")]
    alias: Annotated[str, says("of the memory device")]
    size_bytes: Annotated[int, says("of the device; of virtio-mem what the guest has plugged of it")]
    state: Annotated[
        Literal["attached", "detached", "resized", "pending"],
        says("pending: it completes when the guest does what it was asked"),
    ]
    message: Annotated[str, says("why it is pending; else empty")]


class ChangeAnswer:
    """`attach`, `detach` and `resize`."""

    change: MemoryChange


def add_attach_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``attach``."""
    add_domain(parser)
    parser.add_argument("--size", type=parse_size, metavar="SIZE", required=True, help="size of the memory device")
    parser.add_argument("--type", choices=("dimm", "virtio-mem"), default="dimm", help="kind of memory device")
    parser.add_argument("--cell", type=number, default=0, metavar="N", help="guest NUMA cell; default: 0")
    parser.add_argument(
        "--node", type=number, metavar="N", help="host node to allocate from; default: that of the guest cell"
    )
    parser.add_argument("--persistent", action="store_true", help="also for the domain's next start")


def add_detach_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``detach``."""
    add_domain(parser)
    parser.add_argument("alias", metavar="ALIAS", help="alias of the memory device, as printed by 'virt-dmem show'")
    parser.add_argument(
        "--wait",
        "--timeout",
        type=parse_duration,
        default=10,
        metavar="TIME",
        help="how long to wait for the guest; default: 10s",
    )


def add_resize_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``resize``."""
    add_detach_arguments(parser)
    parser.add_argument("--size", type=size_or_zero, metavar="SIZE", required=True, help="size to be plugged")


def attach(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Attach a memory device to a running domain."""
    device = {
        "domain": args.domain,
        "size_bytes": args.size,
        "model": args.type,
        "cell": args.cell,
        "node": -1 if args.node is None else args.node,
        "persistent": args.persistent,
    }
    return _change(args, out, "Attach", wish=device)


def detach(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Hot-unplug a memory device."""
    return _change(args, out, "Detach", domain=args.domain, alias=args.alias, wait=args.wait)


def resize(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Have a guest plug or unplug blocks of a virtio-mem device."""
    return _change(args, out, "Resize", domain=args.domain, alias=args.alias, size_bytes=args.size, wait=args.wait)


def _change(args: argparse.Namespace, out: Output, method: str, **parameters: object) -> ExitStatus:
    from virt_dmem.cli.daemon import connect
    from virt_dmem.cli.terminal.progress import progress

    change: dict[str, Any] = {}
    try:
        with connect(args, root_for="Changing the memory of a domain") as daemon, progress(out) as show:
            for answer in daemon.call_more(method, **parameters):
                reply = answer["reply"]
                if reply["done"]:
                    change = reply["change"]
                else:
                    show(reply["message"], reply["done_bytes"], reply["total_bytes"])
    except DomainRefused as refusal:
        from virt_dmem.cli.domain_state import why

        raise why(args, refusal) from refusal
    size = out.size(change["size_bytes"])
    if change["state"] == "pending":
        out.note(change["message"])
        outcome = "pending"
    else:
        outcome = f"{size} plugged" if change["state"] == "resized" else f"{size} {change['state']}"
    out.text(f"{change['alias']} of {change['name']}: {outcome}.")
    out.result(change=change)
    return ExitStatus.DONE


COMMANDS = (
    Command(
        "attach",
        "attach pool memory to a running domain",
        attach,
        about=_ABOUT_ATTACH,
        arguments=add_attach_arguments,
        answer="ChangeAnswer",
    ),
    Command(
        "detach",
        "hot-unplug a memory device and free its memory",
        detach,
        about=_ABOUT_DETACH,
        arguments=add_detach_arguments,
        answer="ChangeAnswer",
    ),
    Command(
        "resize",
        "change how much of a virtio-mem device is plugged",
        resize,
        about=_ABOUT_RESIZE,
        arguments=add_resize_arguments,
        answer="ChangeAnswer",
    ),
)
