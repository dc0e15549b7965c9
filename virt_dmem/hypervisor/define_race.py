# SPDX-License-Identifier: GPL-2.0-or-later
"""Detect a concurrent redefinition of a domain while we redefine it, so that the other change is not lost.

libvirt has no "define, if unchanged". But it writes each definition to a new file, and renames that to
``NAME.xml`` (``virFileRewrite``), with the domain locked. By opening each such file in time we have what was
defined between our last read and our own define, although libvirt has discarded it by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lxml import etree

from virt_dmem.domain_xml.parse import parse_xml

__all__ = ["Definitions", "watch", "same"]

_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_ONLYDIR = 0x40, 0x80, 0x100, 0x01000000  # linux/inotify.h
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Definitions:
    """Collect definitions of one domain, in the order in which libvirt wrote them; the first may be older."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        """The definitions that could be opened in time."""
        self.count = 0
        """The number of definitions written."""

    def overwritten(self, before: bytes, after: bytes) -> bytes | None:
        """Return a definition by another tool that ours replaced; ``None``: none was found.

        :param before: The definition read last, ``after``: the one we defined.
        """
        meanings = [_meaning(document) for document in self.documents]
        ours = _meaning(after)
        if ours not in meanings:
            return None
        earlier = meanings[: len(meanings) - 1 - meanings[::-1].index(ours)]
        theirs = [index for index, meaning in enumerate(earlier) if meaning not in (ours, _meaning(before))]
        if not theirs:
            return None
        return etree.tostring(parse_xml(self.documents[theirs[-1]]).getroot(), encoding="utf-8", with_tail=False)

    def may_miss_some(self, after: bytes) -> bool:
        """Return whether there were other definitions, and not all of them could be read."""
        if self.count <= 1:
            return False
        return len(self.documents) <= self.count or not any(same(document, after) for document in self.documents)


@contextmanager
def watch(directory: Path, name: str) -> Iterator[Definitions]:
    """Collect the definitions that libvirt writes of the domain ``name``; complete when the context is left.

    None are collected where ``directory`` does not exist or cannot be read.
    """
    written = Definitions()
    inotify = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    flags = ctypes.c_uint32(_IN_CREATE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_ONLYDIR)
    if inotify < 0 or _libc.inotify_add_watch(inotify, os.fsencode(directory), flags) < 0:
        if inotify >= 0:
            os.close(inotify)
        yield written
        return
    done = os.eventfd(0, os.EFD_CLOEXEC)
    path = os.fsencode(directory / f"{name}.xml")
    thread = threading.Thread(target=_collect, args=(inotify, done, path, written), daemon=True)
    thread.start()
    try:
        yield written
    finally:
        os.eventfd_write(done, 1)  # all events are queued by the time that defineXML returns
        thread.join()
        os.close(done)
        os.close(inotify)


def _collect(inotify: int, done: int, path: bytes, written: Definitions) -> None:
    """Open every file that becomes ``path``, as soon as it is created, and count them."""
    name = path.rpartition(b"/")[2]
    opened: dict[int, int] = {}
    ended = False
    while True:
        for file_name in (path, path + b".new"):
            with contextlib.suppress(OSError):  # replaced already
                fd = os.open(file_name, os.O_RDONLY | os.O_CLOEXEC)
                if opened.setdefault(os.fstat(fd).st_ino, fd) != fd:
                    os.close(fd)
        written.count += _renamed_to(inotify, name)
        if ended:
            break
        ended = done in select.select([inotify, done], [], [])[0]
    for fd in opened.values():
        with open(fd, "rb") as file:  # noqa: PTH123 - a file descriptor
            written.documents.append(file.read())


def _renamed_to(inotify: int, name: bytes) -> int:
    """Return the number of files renamed to this name since the last call."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while data := os.read(inotify, 65536):
            offset = 0
            while offset < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                moved_to = bool(mask & _IN_MOVED_TO)
                count += moved_to and data[offset : offset + length].rstrip(b"\0") == name
                offset += length
    return count


def same(one: bytes, other: bytes) -> bool:
    """Return whether two definitions are the same to libvirt."""
    return _meaning(one) == _meaning(other)


def _meaning(xml: bytes) -> bytes:
    """Return the canonical form: without comments and blanks, and sorted where libvirt has an order of its own."""
    root = parse_xml(xml).getroot()
    for comment in root.xpath(".//comment()"):
        comment.getparent().remove(comment)
    for element in root.iter():
        element.text = element.text if (element.text or "").strip() else None
        element.tail = element.tail if (element.tail or "").strip() else None
    for parent in (*root.iterfind("memoryBacking"), *root.iterfind("devices/memory/source")):
        parent[:] = sorted(parent, key=lambda element: str(element.tag))
    return etree.tostring(root, method="c14n", exclusive=True)
