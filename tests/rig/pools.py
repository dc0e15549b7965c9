# SPDX-License-Identifier: GPL-2.0-or-later
"""Create pools for tests that work with any backend: tmpfs, or the one that VIRT_DMEM_TEST_BACKEND names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.command import virt_dmem
from tests.rig.private_libvirt import PrivateLibvirt

__all__ = ["ALIKE", "BACKEND", "create_pool", "without_pool"]

BACKEND = os.environ.get("VIRT_DMEM_TEST_BACKEND", "tmpfs")
ALIKE = "hugetlbfs" if BACKEND == "dmemfs" else BACKEND
"""The backend that a second host can use at the same time, with the same page size, as post-copy requires."""


def create_pool(name: str, size: str = "256M") -> None:
    """Create a pool."""
    virt_dmem("pool", "create", name, "--backend", BACKEND, "--size", size)


@contextmanager
def without_pool(libvirtd: PrivateLibvirt, name: str, *, instead: str = "") -> Iterator[None]:
    """Destroy an unused pool, and create it again at the end.

    ``instead``: a pool that was created meanwhile, to be destroyed before, with all domains.
    """
    virt_dmem("pool", "destroy", name, "--force")
    try:
        yield
    finally:
        libvirtd.remove()
        if instead:
            virt_dmem("pool", "destroy", instead, "--force")
        create_pool(name)
