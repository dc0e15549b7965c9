# SPDX-License-Identifier: GPL-2.0-or-later
"""Add a second QMP monitor to a domain, beside libvirt's own: four arguments of QEMU's command line.

QEMU creates the socket itself, in the directory that libvirt gives to its user on every host, so that a domain
starts on any host, with virt-dmemd or without. The name is that of the domain's AppArmor profile. QEMU replaces the
socket of an earlier QEMU that was killed (``unix_listen_saddr`` in QEMU's util/qemu-sockets.c unlinks it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lxml import etree

from virt_dmem.domain_xml.edit import insert, lay_out, remove
from virt_dmem.domain_xml.fields import find_child, read_uuid_of
from virt_dmem.domain_xml.qemu.arguments import QEMU_NAMESPACE
from virt_dmem.errors import DomainXmlInvalid
from virt_dmem.host import dirfd

__all__ = [
    "add_monitor",
    "has_monitor",
    "another_domains",
    "is_monitored",
    "remove_monitor",
    "socket_name",
    "socket_of",
    "sockets",
]

_COMMANDLINE, _ARG = f"{{{QEMU_NAMESPACE}}}commandline", f"{{{QEMU_NAMESPACE}}}arg"
_DIRECTORY = "/var/lib/libvirt/qemu"
_MOST_NAMES = 50_000
_CHARDEV = "socket,id=virt-dmem,path={},server=on,wait=off"
_OURS = re.compile(re.escape(_CHARDEV).replace(r"\{\}", rf"(?P<path>{_DIRECTORY}/libvirt-[0-9a-f-]{{36}}\.qmp)"))


def socket_of(uuid: str) -> Path:
    """Return the path of the second monitor's socket."""
    return Path(_DIRECTORY, socket_name(uuid))


def socket_name(uuid: str) -> str:
    """Return the file name of that socket."""
    return f"libvirt-{uuid}.qmp"


def sockets() -> set[str]:
    """Return the names in the sockets' directory that may be sockets; none where it does not exist.

    QEMU's user owns it, and may have filled it: only so many entries are read.
    """
    try:
        with dirfd.opened(Path(_DIRECTORY)) as at:
            found, _ = dirfd.names(at, _MOST_NAMES)
    except OSError:
        return set()
    return {name for name in found if name.endswith(".qmp")}


def has_monitor(xml: bytes) -> bool:
    """Return whether a domain XML has the arguments; only a scan of its bytes, enough for a message."""
    return b"socket,id=virt-dmem,path=" in xml


def is_monitored(root: etree._Element) -> bool:
    """Return whether a domain has the arguments, whichever domain's socket they name."""
    return any(_found(root))


def add_monitor(root: etree._Element, added: list[str]) -> bool:
    """Add the arguments; return False for a domain without a UUID, which has no name for its socket yet.

    Those of an earlier rewrite, of which nothing else is left, are replaced: QEMU rejects them twice.
    """
    try:
        path = socket_of(read_uuid_of(root))
    except DomainXmlInvalid:
        return False
    remove_monitor(root, ["commandline"])
    commandline = find_child(root, _COMMANDLINE)
    if commandline is None:
        commandline = etree.Element(_COMMANDLINE, nsmap={"qemu": QEMU_NAMESPACE})
        insert(root, commandline, root[-1])
        added.append("commandline")
    last = next(reversed(commandline.findall(_ARG)), None)
    for value in ("-chardev", _CHARDEV.format(path), "-mon", "chardev=virt-dmem,mode=control"):
        argument = etree.Element(_ARG, value=value)
        insert(commandline, argument, last)
        last = argument
    if "commandline" in added:
        lay_out(commandline)
    return True


def remove_monitor(root: etree._Element, added: list[str]) -> None:
    """Remove the arguments, whichever domain's socket they name."""
    for commandline, arguments, _ in list(_found(root)):
        for argument in reversed(arguments):
            remove(argument)
        if "commandline" in added and not len(commandline):
            remove(commandline)


def another_domains(root: etree._Element) -> str | None:
    """Return the UUID of another domain whose socket the arguments name, from which this one was copied."""
    paths = {path for _, _, path in _found(root)}
    if not paths:
        return None
    with suppress(DomainXmlInvalid):  # a template may have no UUID any more
        paths.discard(str(socket_of(read_uuid_of(root))))
    others = sorted(paths)
    return Path(others[0]).stem.removeprefix("libvirt-") if others else None


def _found(root: etree._Element) -> Iterator[tuple[etree._Element, list[etree._Element], str]]:
    for commandline in root.iterfind(_COMMANDLINE):
        arguments = commandline.findall(_ARG)
        for number in range(len(arguments) - 3):
            four = arguments[number : number + 4]
            values = [argument.get("value", "") for argument in four]
            match = _OURS.fullmatch(values[1])
            if match and (values[0], *values[2:]) == ("-chardev", "-mon", "chardev=virt-dmem,mode=control"):
                yield commandline, four, match["path"]
