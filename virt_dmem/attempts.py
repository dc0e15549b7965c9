# SPDX-License-Identifier: GPL-2.0-or-later
"""Try each item of a round of work by itself: one that fails harms no other, is said, and is tried again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from virt_dmem.errors import DmemError

__all__ = ["Round", "Attempts"]

log = logging.getLogger(__name__)


class Attempts:
    """What failed in the last round of each kind of work."""

    def __init__(self) -> None:
        self._failed: dict[str, dict[str, str]] = {}

    def failed(self) -> Mapping[str, str]:
        """Return what was said of each item that failed when it was tried last."""
        return {item: words for of_one in self._failed.values() for item, words in of_one.items()}

    @contextmanager
    def round(self, work: str) -> Iterator[Round]:
        """Try all items of a kind of work in this context; what is not tried any more is forgotten at its end."""
        before = self._failed.get(work, {})
        now = Round(before)
        try:
            yield now
        finally:
            self._failed[work] = now.failed
            for item in before.keys() - now.failed.keys():
                log.info("%s: done, or no longer to be done", item)


class Round:
    """One round; each failure is logged when it is new, not each time."""

    def __init__(self, before: Mapping[str, str] | None = None) -> None:
        self._before = before or {}
        self.failed: dict[str, str] = {}

    @contextmanager
    def trying(self, item: str) -> Iterator[None]:
        """Do something for one item in this context, which ends well whatever becomes of it."""
        try:
            yield
        except Exception as error:  # a fault of ours as well: the others are to be served
            words = str(error) or type(error).__name__
            self.failed[item] = words
            if self._before.get(item) != words:
                unforeseen = not isinstance(error, DmemError | OSError)
                log.warning("%s: %s", item, words, exc_info=error if unforeseen else None)
