# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell the hook's shell script which domains rules may take, and check whether a pool can serve one that is taken.

The script looks for marks in the XML, which stand in two files in the state directory: those of all rules, for
domains with shared files, and those of rules that reject other domains. Without rules there are no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.adoption.marks import marks
from virt_dmem.domain_xml.reader import DomainMemory
from virt_dmem.domain_xml.requirements import require_possible, require_whole_pages
from virt_dmem.errors import PoolNotFound
from virt_dmem.pools import registry
from virt_dmem.pools.backends.table import backend
from virt_dmem.pools.record import PoolRecord
from virt_dmem.replaced_file import replace_file

__all__ = ["are_marks_current", "pool_of", "require_servable", "write_marks"]


def write_marks(config: Config) -> bool:
    """Write the marks of all rules for the hook, or remove them where there are none; return if that changed any.

    :raise OSError: When the state directory cannot be written.
    """
    changed = False
    for path, content in _files(config):
        if content == _read(path):
            continue
        changed = True
        if content:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, content)
        else:
            path.unlink(missing_ok=True)
    return changed


def are_marks_current(config: Config) -> bool:
    """Return whether the hook looks for the domains that the rules may take.

    :raise PermissionError: When this process may not know.
    """
    return all(content == _read(path) for path, content in _files(config))


def pool_of(config: Config, domain: DomainMemory) -> PoolRecord:
    """Return the record of the pool that a rule names for a domain.

    :raise PoolNotFound: When there is none; names the rule.
    """
    try:
        return registry.choose(config, domain.pool)
    except PoolNotFound as error:
        raise PoolNotFound(
            f"Rule {domain.rule} of [[adopt]] takes domain {domain.name}, and its pool cannot be used:"
            f" {error.message}",
            hint="Create that pool, or name another one in the rule and restart virt-dmemd.",
        ) from error


def require_servable(config: Config, domain: DomainMemory) -> None:
    """Refuse a domain that a rule takes, and that the rule's pool cannot serve, however much of it is free.

    :raise PoolNotFound: When there is no such pool.
    :raise DomainRefused: When its memory cannot come from that pool.
    """
    record = pool_of(config, domain)
    kind = backend(record.backend)
    require_whole_pages(domain.name, domain.cells, record.page_size)
    require_possible(domain, record.pool, may_lock=kind.lockable, may_pin=kind.has_struct_pages)


def _files(config: Config) -> Iterator[tuple[Path, bytes]]:
    rejecting = [rule for rule in config.adopt if rule.unsuitable == "refuse"]
    for name, rules in (("adopt", config.adopt), ("adopt-refuse", rejecting)):
        found = " ".join(marks(rules))
        yield Path(config.daemon.state_dir, name), f"{found}\n".encode() if found else b""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
