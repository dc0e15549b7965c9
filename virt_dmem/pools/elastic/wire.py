# SPDX-License-Identifier: GPL-2.0-or-later
"""Define what virt-dmemd and virt-dmem-pages say to each other: a line of JSON each.

One request a connection; then any number of ``Progress``, and one of the other replies.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "MOST_BYTES",
    "Done",
    "GiveBack",
    "Progress",
    "Refused",
    "Reply",
    "Request",
    "Take",
    "encode",
    "read_request",
]

MOST_BYTES = 16384
"""Limit of a line."""
_Name = Annotated[str, msgspec.Meta(max_length=100)]
_Bytes = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]
_Node = Annotated[int, msgspec.Meta(ge=0, lt=1024)]


class Take(msgspec.Struct, tag="take", forbid_unknown_fields=True):
    """Take bytes by node for a pool."""

    pool: _Name
    nodes: Annotated[dict[_Node, _Bytes], msgspec.Meta(min_length=1, max_length=1024)]


class GiveBack(msgspec.Struct, tag="give-back", forbid_unknown_fields=True):
    """Give a segment back."""

    segment: _Name


class Progress(msgspec.Struct, tag="progress"):
    """Report what is being done, and the bytes done of those in all."""

    doing: str
    done_bytes: int
    total_bytes: int


class Done(msgspec.Struct, tag="done"):
    """Report success; ``segment`` is the one that was taken or given back."""

    segment: str


class Refused(msgspec.Struct, tag="refused"):
    """Report failure; ``had``: bytes by node that the host did provide, where that is known."""

    code: str
    message: str
    hint: str
    had: dict[int, int] = {}


Request = Take | GiveBack
Reply = Progress | Done | Refused
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def encode(message: Request | Reply) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"


def read_request(line: bytes) -> Request:
    """Return the request of a line.

    :raise ValueError: When it is none (``msgspec.DecodeError`` is one).
    """
    return _requests.decode(line)
