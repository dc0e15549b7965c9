# SPDX-License-Identifier: GPL-2.0-or-later
"""Define what a check looks at, the machine, and the checks' common parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from virt_dmem.config.schema import Config
from virt_dmem.host import kernel
from virt_dmem.pools import registry
from virt_dmem.pools.backends.checks import Result
from virt_dmem.pools.record import PoolRecord

__all__ = ["INSTALL", "Check", "Machine", "text_of"]

INSTALL = "Install it again: 'apt install --reinstall virt-dmem', or 'make install' from a checkout."


@dataclass(frozen=True)
class Machine:
    """The machine to check: this one, or the file system of another one."""

    config: Config
    uri: str
    root: Path = field(default=kernel.ROOT)

    def path(self, path: str | Path) -> Path:
        """Return the path of an absolute path below ``root``."""
        return self.root / str(path).lstrip("/")

    def setting(self, name: str) -> str | None:
        """Return a string setting of libvirt's qemu.conf, ``None`` where it is not set."""
        text = text_of(self.path(self.config.libvirt.config_file))
        found = re.search(rf"^\s*{name}\s*=\s*\[?\s*[\"']([^\"'\n]*)[\"']", text, re.MULTILINE)
        return found[1] if found else None

    def own_config(self) -> Config:
        """Return the configuration with its state directory below ``root``."""
        state_dir = str(self.path(self.config.daemon.state_dir))
        return replace(self.config, daemon=replace(self.config.daemon, state_dir=state_dir))

    def records(self) -> list[PoolRecord]:
        """Return the records of all segments that can be read.

        :raise PermissionError: When they are hidden from this user.
        """
        config = self.own_config()
        with suppress(FileNotFoundError):
            next(config.pool_records_dir.iterdir(), None)  # raises where it is hidden: an empty list would be wrong
        return registry.records(config)


@dataclass(frozen=True)
class Check:
    """One check, which changes nothing."""

    name: str
    """Stable: scripts go by it."""
    run: Callable[[Machine], Result]


def text_of(path: Path) -> str:
    """Return the text of a file; empty where it is none."""
    return path.read_text("utf-8", "replace") if path.is_file() else ""
