# SPDX-License-Identifier: GPL-2.0-or-later
"""Start the command as ``make install`` would, without installing: by its launcher, and links to the packages."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

__all__ = ["write_launcher"]

_REPOSITORY = Path(__file__).parents[2]


def write_launcher(directory: Path, module: str) -> Path:
    """Write the launcher of ``module`` into ``directory``, for this interpreter's packages; return its path."""
    site = directory / "lib/virt-dmem/python{}.{}".format(*sys.version_info[:2])
    if not site.exists():
        site.mkdir(parents=True)
        packages = Path(sysconfig.get_path("purelib")).iterdir()
        for package in [_REPOSITORY / "virt_dmem", *(path for path in packages if path.name != "virt_dmem")]:
            (site / package.name).symlink_to(package)
    text = (_REPOSITORY / "packaging/launcher.in").read_text("utf-8")
    launcher = directory / module
    for name, value in {"DIRECTORIES": repr([str(site)]), "MODULE": module, "PYTHON": site.name}.items():
        text = text.replace(f"@{name}@", value)
    assert "@" not in text, text
    launcher.write_text(text)
    launcher.chmod(0o755)
    return launcher
