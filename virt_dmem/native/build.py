# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the C programs: by hand with ``python -m virt_dmem.native.build``, else from ``hatch_build.py``.

Imports the standard library only: the build of a wheel loads this file by its path, before there is a package.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PROGRAMS", "build", "main"]

_HERE = Path(__file__).resolve().parent
PROGRAMS = {"virt-dmem-prefault": ["-pthread"], "virt-dmem-hook": ["-ljson-c"]}
"""Linker options by program; virt-dmem-NAME is compiled from NAME.c."""


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (_HERE.parent / "__init__.py").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def build(program: str, output: Path | None = None, *, flags: Iterable[str] = ()) -> Path:
    """Compile one of ``PROGRAMS`` to ``output``, beside this file by default; print the command, return ``output``.

    The compiler is ``$CC`` (else ``cc``); ``$CFLAGS`` (else ``-O2``), ``$CPPFLAGS`` and ``$LDFLAGS`` are honoured
    as distributions expect; ``flags`` come last. The new program replaces an old one only once it is complete.

    :raise OSError: When there is no such compiler.
    :raise subprocess.CalledProcessError: When it fails; the reason is on standard error.
    """

    def env(name: str, default: str = "") -> list[str]:
        return shlex.split(os.environ.get(name) or default)

    output = output or _HERE / program
    source = _HERE / f"{program.removeprefix('virt-dmem-')}.c"
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    command = [*env("CC", "cc"), "-std=gnu11", "-Wall", "-Wextra"]
    command += [f'-DVIRT_DMEM_VERSION="{_version()}"', *env("CPPFLAGS"), *env("CFLAGS", "-O2"), *flags]
    command += ["-o", str(unfinished), str(source), *PROGRAMS[program], *env("LDFLAGS")]
    print(shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=True)
        unfinished.chmod(0o755)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return output


def main() -> int:
    """Build the programs that are named, or all, beside this file; return the exit status."""
    for program in sys.argv[1:] or PROGRAMS:
        try:
            build(program)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{program} was not built: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
