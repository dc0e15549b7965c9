# SPDX-License-Identifier: GPL-2.0-or-later
"""Return pools in the form of the JSON output: from virt-dmemd, or from their records."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from virt_dmem.cli.output import Output
from virt_dmem.config.schema import Config
from virt_dmem.errors import DaemonDenied, DaemonUnreachable
from virt_dmem.host import boot_units
from virt_dmem.ipc.client import Client
from virt_dmem.pools import registry
from virt_dmem.pools.elastic.room import elasticity_of
from virt_dmem.pools.record import PoolRecord

__all__ = ["pool_rows", "row_of", "require_readable"]


def pool_rows(config: Config, out: Output) -> list[dict[str, Any]]:
    """Return all pools as virt-dmemd describes them; from their records, with a note, when it does not answer.

    :raise PermissionError: When the records have to be read and are hidden from the caller.
    :raise DaemonDenied: When the caller may not ask virt-dmemd.
    """
    try:
        with Client(config.socket_path) as daemon:
            rows: list[dict[str, Any]] = daemon.call("ListPools")["pools"]
    except DaemonDenied:  # the records are hidden as well
        raise
    except DaemonUnreachable as error:
        require_readable(config)
        out.note(f"{error.message} Reserved memory is not shown.")
        found = registry.records(config)
        by_pool = itertools.groupby(zip(found, registry.capacities(found), strict=True), lambda one: one[0].pool)
        rows = [_row(*zip(*segments, strict=True)) for _, segments in by_pool]
    return [_LATER | row | {"nodes": _nodes(row), "on_boot": boot_units.is_enabled(row["name"])} for row in rows]


_LATER: dict[str, Any] = {"segments": [], "ready_note": None, "elastic": None}
"""Fields that an older virt-dmemd omits, until it is restarted."""


def _nodes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"ready_bytes": None, **node} for node in row["nodes"]]


def row_of(segments: list[PoolRecord]) -> dict[str, Any]:
    """Return what records and mounts of one pool tell, in the form of ``PoolView``; reservations are unknown."""
    return _row(segments, registry.capacities(segments)) | {"on_boot": boot_units.is_enabled(segments[0].pool)}


def _row(segments: Sequence[PoolRecord], capacities: Sequence[Mapping[int, int]]) -> dict[str, Any]:
    unknown = {"reserved_bytes": None, "free_bytes": None}
    first = segments[0]
    capacity: Counter[int] = Counter()
    for of_segment in capacities:
        capacity.update(of_segment)
    return {
        "name": first.pool,
        "backend": first.backend,
        "page_size": first.page_size,
        "mount": first.mount,
        "state": registry.shown_state(segments),
        "capacity_bytes": capacity.total(),
        **unknown,
        "ready_bytes": None,
        "ready_goal_bytes": None,
        "ready_most_bytes": None,
        "ready_policy": None,
        "pinned_bytes": None,
        "nodes": [
            {"node": node, "capacity_bytes": size, **unknown, "ready_bytes": None}
            for node, size in sorted(capacity.items())
        ],
        "segments": [
            {"name": record.name, "capacity_bytes": sum(has.values()), "reserved_bytes": None}
            for record, has in zip(segments, capacities, strict=True)
        ],
        "ready_note": None,
        "elastic": asdict(elastic) if (elastic := elasticity_of(segments)) else None,
    }


def require_readable(config: Config) -> None:
    """Raise ``PermissionError`` where pool records are hidden from the caller: an empty list would be wrong."""
    with suppress(FileNotFoundError):
        next(config.pool_records_dir.iterdir(), None)
