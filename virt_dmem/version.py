# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the version with the commit that it was built from.

Packages and wheels have the commit in a file beside this one; a checkout asks git.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import virt_dmem

__all__ = ["ShowVersion", "version_and_commit"]

_PACKAGE = Path(__file__).parent
_SHORT_OF = ("describe", "--always", "--dirty", "--exclude=*")
"""Arguments of git; hatch_build.py and packaging/deb.sh have the same."""


def version_and_commit(package: Path = _PACKAGE) -> str:
    """Return the version, and the commit where it is known, such as ``0.2.0 (683c758)``."""
    commit = _commit(package)
    return f"{virt_dmem.__version__} ({commit})" if commit else virt_dmem.__version__


def _commit(package: Path) -> str:
    recorded = package / "commit"
    if recorded.is_file():
        return recorded.read_text("utf-8").strip()
    if not (package.parent / ".git").exists():
        return ""
    import subprocess  # noqa: PLC0415 -- slow, and in a checkout only

    try:
        done = subprocess.run(
            ["git", "-C", package.parent, *_SHORT_OF], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class ShowVersion(argparse._VersionAction):
    """Print the program's name and version with commit, which is not asked for before that."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print them and end the program."""
        self.version = f"{parser.prog.split()[0]} {version_and_commit()}"
        super().__call__(parser, namespace, values, option_string)
