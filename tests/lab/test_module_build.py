# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the dmemfs module for the kernels of a host: by DKMS if installed, else by the boot unit at first boot.

In a chroot in the lab's root, with a layer above it, and not on the booted host, where it would take minutes. Only
``uname`` is faked: it reports the lab's kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.overlay_root import OverlayRoot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.image import Image

MODULE = "/usr/lib/virt-dmem/module"
_REPOSITORY = Path(__file__).parents[2]


class Root(OverlayRoot):
    """An installed Debian root with virt-dmem, without booting it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (self.kernel,) = [path.name for path in (self.directory / "lib/modules").iterdir()]

    def modules(self) -> list[str]:
        """Return the paths of the built modules."""
        return self.run("find /lib/modules/ -name 'dmemfs.ko*'").split()

    def remember_pool(self, name: str, backend: str) -> None:
        """Write the part of a pool's record that the boot unit reads."""
        records = self.directory / "var/lib/virt-dmem/pools"
        records.mkdir(parents=True, exist_ok=True)
        (records / f"{name}.json").write_text(json.dumps({"name": name, "backend": backend}, indent=1))


@pytest.fixture(scope="module")
def root(lab_image: Image) -> Iterator[Root]:
    with Root(lab_image.root) as root:
        env = {**os.environ, "DESTDIR": str(root.directory), "PREFIX": "/usr"}
        subprocess.run(["packaging/install.sh"], cwd=_REPOSITORY, env=env, stdout=subprocess.DEVNULL, check=True)
        uname = root.directory / "usr/local/bin/uname"
        uname.write_text(f'#!/bin/sh\n[ "$*" = -r ] && exec echo {root.kernel}\nexec /usr/bin/uname "$@"\n')
        uname.chmod(0o755)
        yield root


def test_the_first_boot_of_a_kernel_builds_it_for_a_pool_that_needs_it(root: Root) -> None:
    first_boot = f"PATH=/usr/local/bin:$PATH {MODULE} for-pool"
    root.remember_pool("huge", "hugetlbfs")
    root.remember_pool("bare", "dmemfs")
    assert root.run(f"{first_boot} huge") == ""
    assert root.modules() == []
    assert root.run(f"{first_boot} bare") == f"dmemfs: built for {root.kernel}\n"
    assert root.modules() == [f"/lib/modules/{root.kernel}/updates/virt-dmem/dmemfs.ko"]
    assert root.run(f"{first_boot} bare") == ""
    assert "same sources" in root.run(f"{MODULE} build")
    root.run(f"{MODULE} remove")
    assert root.modules() == []


def test_dkms_builds_it_and_nothing_is_left_of_earlier_versions(root: Root) -> None:
    root.run("apt-get -qq update && apt-get -qq install --no-install-recommends dkms")
    (sources,) = root.run("echo /usr/src/virt-dmem-*").split()
    root.run(
        f"cp -r {sources} /usr/src/virt-dmem-0.0.1 && sed -i 's/^PACKAGE_VERSION=.*/PACKAGE_VERSION=0.0.1/'"
        " /usr/src/virt-dmem-0.0.1/dkms.conf && dkms add -m virt-dmem -v 0.0.1 && rm -r /usr/src/virt-dmem-0.0.1"
    )
    assert root.run(f"{MODULE} build") == f"dmemfs: built for {root.kernel}\n"
    version = sources.rpartition("-")[2]
    assert root.run("dkms status").strip() == f"virt-dmem/{version}, {root.kernel}, x86_64: installed"
    assert root.modules() == [f"/lib/modules/{root.kernel}/updates/dkms/dmemfs.ko.xz"]
    root.run(f"{MODULE} remove")
    assert root.modules() == []
    assert root.run("dkms status; find /var/lib/dkms -name 'virt-dmem*'") == ""
