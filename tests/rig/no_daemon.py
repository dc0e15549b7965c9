# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for a daemon that does not run, where 'pool resize' would ask one."""

from __future__ import annotations

__all__ = ["NoDaemon"]


class NoDaemon:
    """A fake daemon that does not run, and so allocates nothing."""

    def retire(self, segment: str) -> None:
        """Do nothing: what does not run allocates from no segment."""

    def limit(self, pool: str, size_bytes: int) -> int:
        """Return the bytes that are reserved of a pool: none."""
        return 0
