# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of pool memory that there are."""

from __future__ import annotations

from virt_dmem.errors import UsageError
from virt_dmem.pools.backends.base import Backend
from virt_dmem.pools.backends.dmemfs import Dmemfs
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.backends.tmpfs import Tmpfs

__all__ = ["BACKENDS", "backend"]

BACKENDS: dict[str, Backend] = {kind.name: kind for kind in (Hugetlbfs(), Dmemfs(), Tmpfs())}


def backend(name: str) -> Backend:
    """Return the backend of this name.

    :raise UsageError: When there is none.
    """
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}.", hint=f"The backends are: {', '.join(BACKENDS)}.")
    return BACKENDS[name]
