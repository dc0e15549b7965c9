# SPDX-License-Identifier: GPL-2.0-or-later
"""Try each item of a round of work by itself: a failure stops no other item, is logged once, and is retried."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from virt_dmem.errors import DmemError
from virt_dmem.os_errors import explained, remedy

__all__ = ["Round", "Attempts"]

log = logging.getLogger(__name__)


class Attempts:
    """Track the items that failed in the last round of each kind of work."""

    def __init__(self) -> None:
        self._failed: dict[str, dict[str, str]] = {}

    def failed(self) -> Mapping[str, str]:
        """Return the error message of each item that failed when it was last tried."""
        return {item: words for of_one in self._failed.values() for item, words in of_one.items()}

    def failed_in(self, work: str) -> Mapping[str, str]:
        """Return the items of a kind of work that failed when they were last tried."""
        return self._failed.get(work, {})

    @contextmanager
    def round(self, work: str, *, due: Collection[str] = ()) -> Iterator[Round]:
        """Try items of a kind of work in this context; forget failures of items that are not tried any more.

        :param due: Items whose failures are kept also if this round does not come to them.
        """
        before = self._failed.get(work, {})
        now = Round(before)
        try:
            yield now
        finally:
            left = {item: words for item, words in before.items() if item in due and item not in now.tried}
            self._failed[work] = left | now.failed
            for item in before.keys() - self._failed[work].keys():
                log.info("%s: succeeded, or no longer needed", item)


class Round:
    """Try the items of one round; log a failure when it is new, not each time."""

    def __init__(self, before: Mapping[str, str] | None = None) -> None:
        self._before = before or {}
        self.failed: dict[str, str] = {}
        self.tried: set[str] = set()

    @contextmanager
    def trying(self, item: str) -> Iterator[None]:
        """Work on one item in this context, which never raises an ``Exception``."""
        self.tried.add(item)
        try:
            yield
        except Exception as error:  # a bug of ours as well: it must not stop the others
            shown = explained(error) if isinstance(error, OSError) and remedy(error) else error
            words = str(shown) or type(error).__name__
            self.failed[item] = words
            if self._before.get(item) != words:
                unforeseen = not isinstance(error, DmemError | OSError)
                log.warning("%s: %s", item, words, exc_info=error if unforeseen else None)
