# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems without free space, in a private mount namespace."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["fill", "mount_full"]


def fill(file: Path) -> None:
    """Write to a file until its file system is full to the last byte."""
    with file.open("ab", buffering=0) as opened:
        for size in (65536, 4096, 1):
            try:
                while True:
                    opened.write(b"x" * size)
            except OSError:
                pass


def mount_full(directory: Path) -> Path:
    """Mount a full file system that has the directory's files; return the file whose removal frees 64 KiB."""
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(directory, kept, dirs_exist_ok=True)
        size = 65536 + 4096 * sum(1 for _ in Path(kept).rglob("*"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "full", directory], check=True)
        shutil.copytree(kept, directory, dirs_exist_ok=True)
    filler = directory / "filler"
    fill(filler)
    return filler
