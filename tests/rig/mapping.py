# SPDX-License-Identifier: GPL-2.0-or-later
"""Run another process that maps a file, like a vhost-user peer or a QEMU that does not exit."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["a_process_that_maps"]


@contextmanager
def a_process_that_maps(
    path: Path | str, *, size: int = 0, offset: int = 0, private: bool = False
) -> Iterator[int]:
    """Map ``path`` in a process that has closed it; yield its PID. ``size`` 0: from ``offset`` to the end."""
    program = f"""
        import mmap, sys
        with open({str(path)!r}, "r+b") as file:
            flags = mmap.{"MAP_PRIVATE" if private else "MAP_SHARED"}
            memory = mmap.mmap(file.fileno(), {size}, flags=flags, offset={offset})
        print("mapped", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        yield process.pid
