# SPDX-License-Identifier: GPL-2.0-or-later
"""List the backends: records, the command line, ``check`` and ``plan-host`` find them here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virt_dmem.errors import UsageError
from virt_dmem.pools.backends.base import Backend
from virt_dmem.pools.backends.dmemfs import Dmemfs
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.backends.tmpfs import Tmpfs

if TYPE_CHECKING:
    import argparse

__all__ = ["BACKENDS", "DEFAULT", "add_options", "backend", "settings"]

_ALL: tuple[Backend[Any], ...] = (Hugetlbfs(), Dmemfs(), Tmpfs())
BACKENDS: dict[str, Backend[Any]] = {kind.name: kind for kind in _ALL}
DEFAULT = Hugetlbfs.name


def backend(name: str) -> Backend[Any]:
    """Return the backend of this name.

    :raise UsageError: When there is none.
    """
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}.", hint=f"The backends are: {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend`` and every backend's own options to the parser of 'pool create'."""
    parser.add_argument("--backend", choices=tuple(BACKENDS), default=DEFAULT, help="kind of memory")
    for kind in BACKENDS.values():
        kind.add_options(parser)


def settings(args: argparse.Namespace, *, sized: bool) -> dict[str, Any]:
    """Return the fields of a new record that the chosen backend's own options set.

    :param sized: The size of the pool is given by other options.
    :raise UsageError: When an option is given that only another backend has, or options contradict each other.
    """
    for kind in BACKENDS.values():
        if kind.name != args.backend:
            kind.reject_options(args, args.backend)
    return backend(args.backend).settings(args, sized=sized)
