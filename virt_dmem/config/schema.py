# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: ``virt-dmem.toml``, then drop-ins, each key checked.

Later files win key by key. An unknown key or a wrong type is refused with the file and the key: a typo must
not silently mean the default. virt-dmem.toml(5) is made from what is said here below each key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from virt_dmem.config.files import DEFAULT_FILE, DEFAULT_RUN_DIR, READERS_SOCKET_NAME, SOCKET_NAME, read_files
from virt_dmem.errors import ConfigError

__all__ = [
    "DEFAULT_PATH",
    "Config",
    "DaemonConfig",
    "LibvirtConfig",
    "MetricsConfig",
    "PrefaultConfig",
    "keys",
    "load_config",
    "load_config_and_origins",
]

DEFAULT_PATH = Path(DEFAULT_FILE)


class DaemonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[daemon]``."""

    state_dir: str = "/var/lib/virt-dmem"
    """Ledger and pool records; survives a reboot."""
    run_dir: str = DEFAULT_RUN_DIR
    """Control socket and pool mounts; made by tmpfiles."""
    group: str = "virt-dmem"
    """Members may read over the control socket; only root may change."""


class LibvirtConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[libvirt]``."""

    uri: str = "qemu:///system"
    """The libvirt to follow."""
    config_file: str = "/etc/libvirt/qemu.conf"
    """Where libvirt's own ``memory_backing_dir`` is looked up."""
    run_dir: str = "/run/libvirt/qemu"
    """Where libvirt keeps each QEMU's PID file."""
    auto_apply: bool = True
    """Rewrite a domain by ourselves when it is defined with our metadata."""
    monitor: bool = True
    """Have ``apply`` give QEMU a second monitor, for what libvirt does not tell; libvirt then calls the domain
    tainted (custom-argv)."""
    incoming: Literal["default-pool", "ordinary", "refuse"] = "default-pool"
    """What becomes of a domain that migrates here or is restored, and whose pool this host has not: it gets memory
    of the default pool; or else is refused, or ("ordinary") has a file in libvirt's memory_backing_dir."""


class PrefaultConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[prefault]``."""

    threads: int = 0
    """Threads of the helper for each extent; 0: one for each CPU it may run on, at most 16."""
    helper: str = ""
    """Path of ``virt-dmem-prefault``; empty: the one that was built into the package."""
    ready: Literal["all", "recent", "off"] = "all"
    """Whose memory is brought in and zeroed ahead, so that they start at once: of all domains that are applied and
    shut off, as far as the pools have room; of those that ran here before; of none."""
    ready_percent: int = 100
    """How much of each pool may be ready at the same time; what domains reserve comes first in any case."""
    ready_threads: int = 1
    """Threads that work on that, at the lowest priority."""
    ready_pressure: float = 20.0
    """No such work while tasks of the host wait for a CPU, or for memory, for more percent of the time than this
    (average of 10 seconds, /proc/pressure); memory of tmpfs that is ready is then given back to the host."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[metrics]``."""

    textfile: str = ""
    """File that virt-dmemd writes for the node exporter's textfile collector, such as
    /var/lib/prometheus/node-exporter/virt_dmem.prom; empty: none."""
    interval_seconds: int = 15
    """How often it is written, in seconds."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it; every key has a default that works."""

    default_pool: str = ""
    """The pool of domains that name none; empty: the only pool, if there is exactly one."""
    templates_dir: str = "/etc/virt-dmem/templates"
    """XML fragments here replace those that came with the package, file by file."""
    daemon: DaemonConfig = DaemonConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    prefault: PrefaultConfig = PrefaultConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def socket_path(self) -> Path:
        """The control socket, root's own."""
        return Path(self.daemon.run_dir) / SOCKET_NAME

    @property
    def readers_socket_path(self) -> Path:
        """The socket of those who may only look: what waits there keeps nobody out of the other one."""
        return Path(self.daemon.run_dir) / READERS_SOCKET_NAME

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


def load_config(path: Path | None = None) -> Config:
    """Read ``path`` and the ``conf.d/*.toml`` beside it, in order of their names.

    Without ``path`` the default file is read, and may be missing.

    :raise ConfigError: When a file cannot be read or holds what we do not know; names the file and the key.
    """
    return load_config_and_origins(path)[0]


def load_config_and_origins(path: Path | None = None) -> tuple[Config, dict[str, str]]:
    """Read the same; return also, by key (``daemon.run_dir``), the file that each key was set by last.

    :raise ConfigError: As ``load_config``.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, content in read_files(path):
        for key, value in _checked(Config, content, file):  # each file by itself: the one named is to blame
            origins[key] = file
            section, dot, name = key.rpartition(".")
            (merged.setdefault(section, {}) if dot else merged)[name] = value
    return msgspec.convert(merged, Config), origins


def keys(kind: type[msgspec.Struct] = Config, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every key that there is (``daemon.run_dir``), its type and its default."""
    defaults = kind()
    for name, of in get_type_hints(kind, include_extras=True).items():
        if _is_section(of):
            yield from keys(of, f"{above}{name}.")
        else:
            yield f"{above}{name}", of, getattr(defaults, name)


def _is_section(of: object) -> bool:
    return isinstance(of, type) and issubclass(of, msgspec.Struct)


def _checked(
    kind: type[msgspec.Struct], table: dict[str, Any], file: str, above: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield each key (after the name of its section) and value of a table."""
    known = get_type_hints(kind, include_extras=True)
    for name, value in table.items():
        key = f"{above}{name}"
        if name not in known:
            raise _unknown(key, name, above, list(known), file)
        if _is_section(known[name]) and isinstance(value, dict):
            yield from _checked(known[name], value, file, f"{key}.")
            continue
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"In {file}, {key} cannot be {value!r}: {str(error).lower()}.",
                hint="virt-dmem.toml(5) describes every key; 'virt-dmem config show' prints them all.",
            ) from error
        yield key, value


def _unknown(key: str, name: str, section: str, known: list[str], file: str) -> ConfigError:
    import difflib  # noqa: PLC0415 -- for a typo only

    near = [there for there, _, _ in keys() if there.endswith(f".{name}")]  # it is of another section
    near += [section + found for found in difflib.get_close_matches(name, known, n=1)]
    hint = f"Did you mean {near[0]}?" if near else f"What is known here: {', '.join(known)}."
    return ConfigError(f"In {file}, there is no key {key}.", hint=hint)
