# SPDX-License-Identifier: GPL-2.0-or-later
"""Serialize changes of pools, and what must not happen during one.

The lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolError
from virt_dmem.os_errors import explained

__all__ = ["locked", "unless_locked"]

_NAME = ".lock"


@contextlib.contextmanager
def locked(config: Config) -> Iterator[None]:
    """Hold the lock of this host's pools, as soon as nobody else does.

    :raise PoolError: When this process may not.
    """
    directory = config.pool_records_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explained(
            error,
            directory / _NAME,
            kind=PoolError,
            doing="Pools cannot be changed",
            otherwise="Run this as root.",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def unless_locked(config: Config) -> Iterator[bool]:
    """Hold the lock if nobody else does, without waiting; return whether this process does.

    Also on a file system that became read-only.
    """
    try:
        fd = os.open(config.pool_records_dir / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # no pool was ever created
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)
