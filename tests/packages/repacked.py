# SPDX-License-Identifier: GPL-2.0-or-later
"""Make a package of another version from one that was built."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

__all__ = ["repacked"]


def repacked(package: Path, version: str, directory: Path) -> Path:
    """Return the path of a package with the files and scripts of ``package`` and another version."""
    tree, deb = directory / "tree", directory / f"{package.name.partition('_')[0]}_{version}.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL)
    return deb
