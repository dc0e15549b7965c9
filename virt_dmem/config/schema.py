# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the configuration: ``virt-dmem.toml``, then drop-ins, each key checked.

Later files override earlier ones key by key. An unknown key or a wrong type is rejected with the file and the key:
a typo must not silently mean the default. virt-dmem.toml(5) is generated from the docstring below each key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from virt_dmem.config.files import (
    DEFAULT_RUN_DIR,
    PAGES_SOCKET_NAME,
    READERS_SOCKET_NAME,
    SOCKET_NAME,
    read_files,
)
from virt_dmem.errors import ConfigError
from virt_dmem.pool_name import POOL_NAME, POOL_NAME_HINT

__all__ = [
    "AdoptRule",
    "Config",
    "DaemonConfig",
    "LibvirtConfig",
    "MetricsConfig",
    "PrefaultConfig",
    "digest",
    "keys",
    "load_config",
    "load_config_and_origins",
]


_RULES = "adopt"
_MOST_RULES = 100
_LONGEST_PATTERN = 256


class DaemonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[daemon]``."""

    state_dir: str = "/var/lib/virt-dmem"
    """Directory of the ledger and the pool records; has to survive a reboot."""
    run_dir: str = DEFAULT_RUN_DIR
    """Directory of the control socket and the pool mounts; created by tmpfiles."""
    group: str = "virt-dmem"
    """Members of this group may read over the control socket; only root may change anything."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of messages that virt-dmemd logs; the option --log-level of virt-dmemd takes precedence."""


class LibvirtConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[libvirt]``."""

    uri: str = "qemu:///system"
    """URI of the libvirt to connect to."""
    config_file: str = "/etc/libvirt/qemu.conf"
    """Libvirt's configuration file, from which its ``memory_backing_dir`` is read."""
    run_dir: str = "/run/libvirt/qemu"
    """Directory in which libvirt keeps each QEMU's PID file."""
    auto_apply: bool = True
    """Rewrite a domain automatically when it is defined with virt-dmem's metadata."""
    monitor: bool = True
    """Have ``apply`` give QEMU a second monitor, for events that libvirt does not report; libvirt then marks the
    domain as tainted (custom-argv)."""
    incoming: Literal["default-pool", "ordinary", "refuse"] = "default-pool"
    """How to handle a domain that is migrated to this host or restored, and whose pool does not exist here: use the
    default pool, use a file in libvirt's memory_backing_dir ("ordinary"), or reject it ("refuse")."""


class PrefaultConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[prefault]``."""

    threads: int = 0
    """Number of threads that populate an extent; 0: one for each CPU the helper may run on, at most 16."""
    helper: str = ""
    """Path of ``virt-dmem-prefault``; empty: the one in the package."""
    ready: Literal["all", "recent", "off"] = "all"
    """Domains whose memory is pre-zeroed (populated and zeroed ahead), so that they start without delay: all that
    are applied and shut off, as far as the pools have room; those that ran here before ("recent"); none ("off")."""
    ready_percent: int = 100
    """Largest part of each pool, in percent, that may be pre-zeroed at a time; reservations of domains always take
    precedence."""
    ready_threads: int = 1
    """Number of threads that pre-zero memory, at the lowest priority."""
    ready_pressure: float = 20.0
    """Pressure, in percent, above which pre-zeroing pauses: the time that tasks of the host wait for a CPU, or for
    memory (10-second average of /proc/pressure); pre-zeroed memory of tmpfs is then given back to the host."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[metrics]``."""

    textfile: str = ""
    """File that virt-dmemd writes for the node exporter's textfile collector, such as
    /var/lib/prometheus/node-exporter/virt_dmem.prom; empty: none."""
    interval_seconds: int = 15
    """Interval at which that file is written, in seconds."""


class AdoptRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[adopt]]``."""

    rule: str = ""
    """Name of the rule, for messages; empty: its number."""
    metadata: str = ""
    """Namespace of an element in the domain's metadata, such as "http://openstack.org/xmlns/libvirt/nova/*"."""
    domain: str = ""
    """Name of the domain, such as "instance-*"."""
    flavor: str = ""
    """Name of its flavor, in the metadata of OpenStack's nova."""
    extra_spec: str = ""
    """An extra spec of its flavor, "KEY" or "KEY=VALUE", likewise; nova writes them from 32.0 (2025.2) on."""
    pool: str = ""
    """Pool that its memory comes from; empty: the default pool."""
    unsuitable: Literal["ignore", "refuse"] = "ignore"
    """What to do with a domain that the rule takes and whose memory is not of shared files (huge pages, memfd,
    ordinary memory), or cannot come from any pool: leave it as it is, without pool memory ("ignore"), or reject its
    start ("refuse")."""

    @property
    def patterns(self) -> dict[str, str]:
        """The patterns that a domain has to match, all of them, by their keys."""
        keys = ("metadata", "domain", "flavor", "extra_spec")
        return {key: pattern for key in keys if (pattern := getattr(self, key))}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration; every key has a usable default."""

    default_pool: str = ""
    """Pool of domains that name none; empty: the only pool, if there is exactly one."""
    templates_dir: str = "/etc/virt-dmem/templates"
    """Directory of XML fragments that replace those of the package, file by file."""
    adopt: tuple[AdoptRule, ...] = ()
    """Rules for domains that do not ask for pool memory, as another program generates their XML. The first rule
    whose patterns a domain matches takes it: if its memory is of shared files (``<source type='file'/>``, ``<access
    mode='shared'/>`` in its ``<memoryBacking>``), it comes from the rule's pool, and the XML stays as it is. In a
    pattern ``*`` stands for any text, ``?`` for one character, ``[abc]`` for one of these. The rules of all files
    are in force, in the order of the files."""
    daemon: DaemonConfig = DaemonConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    prefault: PrefaultConfig = PrefaultConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def socket_path(self) -> Path:
        """Path of the control socket, which only root may use."""
        return Path(self.daemon.run_dir) / SOCKET_NAME

    @property
    def readers_socket_path(self) -> Path:
        """Path of the read-only socket: callers waiting there do not delay those of the other one."""
        return Path(self.daemon.run_dir) / READERS_SOCKET_NAME

    @property
    def pages_socket_path(self) -> Path:
        """Path of the socket of virt-dmem-pages, which only root may use."""
        return Path(self.daemon.run_dir) / PAGES_SOCKET_NAME

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
        """Path of the SQLite database."""
        return Path(self.daemon.state_dir) / "ledger.sqlite"


def load_config(path: Path | None = None) -> Config:
    """Read ``path`` and the ``conf.d/*.toml`` beside it, in order of their names.

    Without ``path`` the default file is read, and may be missing.

    :raise ConfigError: When a file cannot be read or has an unknown key; the message names file and key.
    """
    return load_config_and_origins(path)[0]


def load_config_and_origins(path: Path | None = None) -> tuple[Config, dict[str, str]]:
    """Read the configuration; return also, by key (``daemon.run_dir``), the file that set it last.

    :raise ConfigError: As ``load_config``.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, content in read_files(path):
        for key, value in _checked(
            Config, content, file
        ):  # each file by itself: the message has to name the wrong one
            section, dot, name = key.rpartition(".")
            if key == _RULES:
                merged[key] = [*merged.get(key, []), *value]
                origins[key] = ", ".join(dict.fromkeys([*filter(None, [origins.get(key)]), file]))
                continue
            origins[key] = file
            (merged.setdefault(section, {}) if dot else merged)[name] = value
    return msgspec.convert(merged, Config), origins


def digest(config: Config) -> str:
    """Return a text that two configurations have in common only if they are equal."""
    return hashlib.sha256(msgspec.json.encode(config)).hexdigest()


def keys(kind: type[msgspec.Struct] = Config, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every key (``daemon.run_dir``) with its type and its default."""
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
        if key == _RULES and isinstance(value, list):
            _require_rules(value, file)
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"In {file}, {key} cannot be {value!r}: {str(error).lower()}.",
                hint="virt-dmem.toml(5) describes every key; 'virt-dmem config show' prints them all.",
            ) from error
        yield key, value


def _require_rules(rules: list[Any], file: str) -> None:
    """Refuse rules with unknown keys, without a pattern, or with one that no domain could match.

    :raise ConfigError: Names the rule by its number in the file.
    """
    if len(rules) > _MOST_RULES:
        raise ConfigError(f"In {file}, there are {len(rules)} rules.", hint=f"Use at most {_MOST_RULES}.")
    for number, table in enumerate(rules, 1):
        if not isinstance(table, dict):
            continue  # its type is checked with all others
        for _ in _checked(AdoptRule, table, file, f"{_RULES}."):
            pass
        rule = msgspec.convert(table, AdoptRule)
        where = f"In {file}, rule {number} of [[{_RULES}]]"
        if not rule.patterns:
            raise ConfigError(
                f"{where} has no pattern.",
                hint='Set metadata, domain, flavor or extra_spec; domain = "*" takes every domain.',
            )
        for key, pattern in rule.patterns.items():
            if len(pattern) > _LONGEST_PATTERN:
                raise ConfigError(
                    f"{where} has a pattern of {len(pattern)} characters in {key}.",
                    hint=f"Use at most {_LONGEST_PATTERN}.",
                )
        if rule.pool and not POOL_NAME.fullmatch(rule.pool):
            raise ConfigError(f"{where} names pool {rule.pool!r}, which cannot exist.", hint=POOL_NAME_HINT)


def _unknown(key: str, name: str, section: str, known: list[str], file: str) -> ConfigError:
    import difflib  # noqa: PLC0415 -- for a typo only

    near = [there for there, _, _ in keys() if there.endswith(f".{name}")]  # it is of another section
    near += [section + found for found in difflib.get_close_matches(name, known, n=1)]
    hint = f"Did you mean {near[0]}?" if near else f"Known here are: {', '.join(known)}."
    return ConfigError(f"In {file}, there is no key {key}.", hint=hint)
