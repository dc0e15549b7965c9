# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the disk of a host with OpenStack's packages, for a machine with a kernel and KVM of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.image import _CACHE, Image, _make_disk, pack_tree, the_root

__all__ = ["image_with_openstack"]


@contextmanager
def image_with_openstack(root: Path) -> Iterator[Image]:
    """Provide the disk of ``root`` with the project installed, for as long as the context lasts.

    :raise RigError: When it cannot be built; with the last lines of output.
    """
    base = the_root("trixie")
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as name:
        making = Path(name)
        pack_tree(making / "tree.tar")
        _make_disk(root, making, None)
        kernel, initrd = base.parent / "kernel", base.parent / "initrd"
        yield Image("trixie", making / "disk", kernel, initrd, root, base)
