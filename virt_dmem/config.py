# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: ``virt-dmem.toml``, then drop-ins, each key checked.

Later files win key by key. An unknown key or a wrong type is refused with the file and the key: a typo must
not silently mean the default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from virt_dmem.errors import ConfigError

__all__ = ["DEFAULT_PATH", "Config", "DaemonConfig", "LibvirtConfig", "PrefaultConfig", "load_config"]

DEFAULT_PATH = Path("/etc/virt-dmem/virt-dmem.toml")


class DaemonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[daemon]``."""

    state_dir: str = "/var/lib/virt-dmem"
    """Ledger and pool records; survives a reboot."""
    run_dir: str = "/run/virt-dmem"
    """Control socket and pool mounts; made by tmpfiles."""
    group: str = "virt-dmem"
    """Members may read over the control socket; only root may change."""


class LibvirtConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[libvirt]``."""

    uri: str = "qemu:///system"
    config_file: str = "/etc/libvirt/qemu.conf"
    """Where libvirt's own ``memory_backing_dir`` is looked up."""
    run_dir: str = "/run/libvirt/qemu"
    """Where libvirt keeps each QEMU's PID file."""
    auto_apply: bool = True
    """Rewrite a domain by ourselves when it is defined with our metadata."""


class PrefaultConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[prefault]``."""

    threads: int = 0
    """Threads of the helper for each extent; 0: one for each CPU it may run on, at most 16."""
    helper: str = ""
    """Path of ``virt-dmem-prefault``; empty: the one that was built into the package."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it; every key has a default that works."""

    default_pool: str = ""
    """The pool of domains that name none; empty: the only pool, if there is exactly one."""
    templates_dir: str = "/etc/virt-dmem/templates"
    """XML fragments here replace those that came with the package, file by file."""
    daemon: DaemonConfig = DaemonConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    prefault: PrefaultConfig = PrefaultConfig()

    @property
    def socket_path(self) -> Path:
        """The control socket."""
        return Path(self.daemon.run_dir) / "sock"

    @property
    def pools_dir(self) -> Path:
        """Directory of pool mounts, one for each pool, named as the pool."""
        return Path(self.daemon.run_dir) / "pools"

    @property
    def pool_records_dir(self) -> Path:
        """Directory of pool records, ``NAME.json`` each."""
        return Path(self.daemon.state_dir) / "pools"

    @property
    def ledger_path(self) -> Path:
        """The SQLite file."""
        return Path(self.daemon.state_dir) / "ledger.sqlite"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_config(path: Path | None = None) -> Config:
    """Read ``path`` and the ``conf.d/*.toml`` beside it, in order of their names.

    Without ``path`` the default file is read, and may be missing.

    :raise ConfigError: When a file cannot be read or holds what we do not know; names the file.
    """
    main = path or DEFAULT_PATH
    if path is not None and not path.exists():
        raise ConfigError(f"There is no configuration file {path}.", hint="Name an existing one with --config.")
    merged: dict[str, Any] = {}
    config = Config()
    for file in [main, *sorted((main.parent / "conf.d").glob("*.toml"))]:
        if not file.exists():
            continue
        try:
            merged = _merge(merged, tomllib.loads(file.read_text("utf-8")))
            config = msgspec.convert(merged, Config)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ConfigError(
                f"The configuration file {file} cannot be used: {error}.",
                hint="Mend it; /usr/share/doc/virt-dmem/virt-dmem.toml lists every key.",
            ) from error
    return config
