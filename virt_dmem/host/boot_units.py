# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell whether systemd restores a pool at each boot, and have it do so: by ``virt-dmem-pool@NAME.service``."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from virt_dmem.errors import PoolError
from virt_dmem.host import kernel

__all__ = ["enable", "is_enabled", "unit_of"]

_DIRECTORIES = ("etc/systemd/system", "usr/lib/systemd/system")
"""Where links from ``multi-user.target.wants`` and the like enable a unit (systemd.unit(5))."""
_ENABLE_SECONDS = 60


def unit_of(pool: str) -> str:
    """Return the name of the unit that restores a pool."""
    return f"virt-dmem-pool@{pool}.service"


def is_enabled(pool: str, *, root: Path = kernel.ROOT) -> bool | None:
    """Return whether a target wants or requires the unit; ``None`` where systemd is not the init of this host."""
    if not (root / "run/systemd/system").is_dir():
        return None
    for directory in _DIRECTORIES:
        for kind in ("wants", "requires"):
            with suppress(OSError):
                if any((target / unit_of(pool)).is_symlink() for target in (root / directory).glob(f"*.{kind}")):
                    return True
    return False


def enable(pool: str) -> None:
    """Have systemd restore a pool at each boot.

    :raise PoolError: When it cannot, with what systemctl says; the pool itself is as it was.
    """
    try:
        done = subprocess.run(
            ["systemctl", "enable", unit_of(pool)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ENABLE_SECONDS,
        )
        said = "" if done.returncode == 0 else done.stderr.strip() or f"systemctl exited with {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        raise PoolError(
            f"Pool {pool} is there, and will not be restored at boot: {said.rstrip('.')}.",
            hint=f"Run 'systemctl enable {unit_of(pool)}' once that is fixed.",
        )
