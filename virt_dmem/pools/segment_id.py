# SPDX-License-Identifier: GPL-2.0-or-later
"""Identify a segment of a pool: its text on disk, in JSON and in messages is ``POOL`` or ``POOL+N``."""

from __future__ import annotations

__all__ = ["SegmentId"]


class SegmentId(str):
    """Name one segment of a pool: ``POOL`` is the first, ``POOL+1`` the next.

    It is its text, so that it costs no more than that as a key, in a query and in a path. Where plain ``str`` is
    required (msgspec encodes no other), use ``str()``.
    """

    __slots__ = ()

    @classmethod
    def of(cls, pool: str, number: int) -> SegmentId:
        """Return the identifier of segment ``number`` (from 0) of a pool."""
        return cls(f"{pool}+{number}" if number else pool)

    @property
    def pool(self) -> str:
        """The name of its pool."""
        return str(self.partition("+")[0])

    @property
    def number(self) -> int:
        """Its number in the pool, from 0."""
        return int(self.partition("+")[2] or 0)
