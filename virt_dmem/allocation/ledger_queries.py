# SPDX-License-Identifier: GPL-2.0-or-later
"""Query the ledger: reservations, extents, charges, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

from virt_dmem.allocation.ledger_file import LedgerFile
from virt_dmem.allocation.models import (
    Extent,
    ExtentState,
    Failure,
    Parked,
    ParkedStep,
    Phase,
    PhaseChange,
    Reservation,
    TimedStep,
)
from virt_dmem.errors import UsageError
from virt_dmem.host.kernel import uptime
from virt_dmem.pools.segment_id import SegmentId

__all__ = ["LedgerQueries"]

_EXTENT_COLUMNS = """
extent.id, extent.uuid, alias, pool, path, size_bytes, page_size, policy, state, extent.boot_id, link, node, bytes
"""
_EXTENTS = f"SELECT {_EXTENT_COLUMNS} FROM extent LEFT JOIN share ON share.extent = extent.id"  # noqa: S608
_RESERVATIONS = f"""
SELECT reservation.uuid, name, reservation.boot_id, phase, reservation.since, coalesce(parked.state_file, ''),
{_EXTENT_COLUMNS} FROM reservation LEFT JOIN parked ON parked.uuid = reservation.uuid
LEFT JOIN extent ON extent.uuid = reservation.uuid AND state != 'quarantined'
LEFT JOIN share ON share.extent = extent.id
"""  # noqa: S608 -- of literals, as above


class LedgerQueries(LedgerFile):
    """Answer queries; write nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._explained():
            now = uptime()
            self._sequence = 0
            self._phases = {
                uuid: PhaseChange(Phase(phase), since, self._sequence, now)
                for uuid, phase, since in self._db.execute("SELECT uuid, phase, since FROM reservation")
            }

    # Charges and phases

    def reserved(self) -> dict[tuple[SegmentId, int], int]:
        """Return the bytes charged of each (segment, node), for extents in every state."""
        with self._explained():
            rows = self._db.execute("SELECT pool, node, bytes FROM charged WHERE bytes != 0")
            return {(SegmentId(segment), node): size for segment, node, size in rows}

    def phases(self) -> Mapping[str, PhaseChange]:
        """Return the phase of each domain with a reservation, by UUID, as a view that follows the ledger.

        Kept in memory, as it is read often and for all domains.
        """
        return MappingProxyType(self._phases)

    def sequence(self) -> int:
        """Return the sequence number of the last change of a domain's phase; a later change has a larger one.

        Unlike the clock, it is never set back while the ledger is open.
        """
        return self._sequence

    # Reservations

    def reservations(self) -> Iterator[Reservation]:
        """Yield all reservations, by name of the domain; read all before the next write."""
        return self._each("TRUE")

    def reservations_of(self, uuids: Collection[str]) -> list[Reservation]:
        """Return the reservations of the given domains that have one, in one query."""
        return self._reservations(f"reservation.uuid IN ({', '.join('?' * len(uuids))})", *uuids)

    def interrupted(self, boot_id: str) -> list[Reservation]:
        """Return the reservations of this boot that are not in use: being prepared, or stopping."""
        phases = (Phase.RESERVED.value, Phase.STOPPED.value)
        return self._reservations("reservation.phase IN (?, ?) AND reservation.boot_id = ?", *phases, boot_id)

    def of_other_boots(self, boot_id: str) -> list[Reservation]:
        """Return the reservations of other boots."""
        return self._reservations("reservation.boot_id != ?", boot_id)

    def unsettled(self) -> list[Reservation]:
        """Return the reservations of running domains with an extent that is not POPULATED."""
        return self._reservations(
            "reservation.phase = ? AND reservation.uuid IN (SELECT uuid FROM extent WHERE state != 'ready')",
            Phase.RUNNING.value,
        )

    def find(self, uuid: str) -> Reservation | None:
        """Return the reservation of a domain by its UUID in canonical form, as tenants choose the names."""
        found = self._reservations("reservation.uuid = ?", uuid)
        return found[0] if found else None

    def find_named(self, typed: str) -> Reservation | None:
        """Return the reservation of a domain that a user named: by UUID in any form, else by name.

        :raise UsageError: When several have that name, as one was renamed or undefined while it runs.
        """
        found = self.find(typed) or self.find(_canonical(typed))
        if found:
            return found
        some = self._reservations("reservation.name = ?", typed)
        if len(some) > 1:
            raise UsageError(
                f"{len(some)} domains with memory of a pool are named {typed!r}:"
                f" {', '.join(held.uuid for held in some)}.",
                hint="Specify the domain by its UUID.",
            )
        return some[0] if some else None

    def touched(self) -> set[str]:
        """Return the UUIDs of domains that were written since the last call."""
        with self._explained():
            found = {uuid for (uuid,) in self._db.execute("SELECT uuid FROM touched")}
            if found:
                self._db.execute("DELETE FROM touched")
        return found

    # Extents

    def quarantined(self) -> list[Extent]:
        """Return the extents whose domain is gone while a process still maps them."""
        return self._extents("state = 'quarantined' AND state != 'ready'")  # so that the index is used

    def extents_in(self, segment: SegmentId) -> list[Extent]:
        """Return the extents of a segment, in every state."""
        return self._extents("pool = ?", segment)

    def charged_in_part(self, segment: SegmentId) -> list[Extent]:
        """Return the extents of a segment that are charged with less than their size."""
        charged = "(SELECT total(bytes) FROM share WHERE share.extent = extent.id)"
        return self._extents(f"pool = ? AND size_bytes > {charged}", segment)

    def extents_of(self, uuid: str) -> list[Extent]:
        """Return the extents of a domain, in every state."""
        return self._extents("uuid = ?", uuid)

    def sizes_in(self, segment: SegmentId) -> dict[str, int]:
        """Return the size in bytes of each extent of a segment, in every state, by path."""
        with self._explained():
            return dict(
                self._db.execute("SELECT path, size_bytes FROM extent WHERE pool = ?", (segment,)).fetchall()
            )

    def has_path(self, path: Path) -> bool:
        """Tell whether an extent, in whatever state, has a path."""
        with self._explained():
            return self._db.execute("SELECT 1 FROM extent WHERE path = ?", (str(path),)).fetchone() is not None

    # Parked domains

    def parked(self, uuid: str) -> Parked | None:
        """Return what is recorded of a parked domain; ``None`` for any other."""
        return self.all_parked().get(uuid)

    def all_parked(self) -> dict[str, Parked]:
        """Return what is recorded of each parked domain, by UUID."""
        with self._explained():
            rows = self._db.execute("SELECT uuid, step, state_file, since FROM parked").fetchall()
        return {uuid: Parked(uuid, ParkedStep(step), Path(file), since) for uuid, step, file, since in rows}

    # Failed memory, steps, drained pools

    def has_failed(self, extent: Extent) -> bool:
        """Tell whether an extent may contain failed memory."""
        with self._explained():
            rows = self._db.execute("SELECT 1 FROM failure WHERE extent = ?", (extent.id,))
            return rows.fetchone() is not None

    def failures(self) -> list[Failure]:
        """Return the extents that may contain failed memory, by path."""
        with self._explained():
            rows = self._db.execute(
                "SELECT extent.id, extent.path, failure.domain, failure.what FROM failure"
                " CROSS JOIN extent ON extent.id = failure.extent ORDER BY extent.path"  # few, looked up in many
            ).fetchall()
        return [Failure(row[0], Path(row[1]), row[2], row[3]) for row in rows]

    def steps(self, uuid: str) -> list[TimedStep]:
        """Return the steps of a domain's last start, in the order in which they ended."""
        with self._explained():
            rows = self._db.execute("SELECT step, at, seconds FROM step WHERE uuid = ? ORDER BY rowid", (uuid,))
            return [TimedStep(*row) for row in rows]

    def names(self) -> dict[str, str]:
        """Return the names of the domains that hold memory, by UUID."""
        with self._explained():
            return dict(self._db.execute("SELECT uuid, name FROM reservation").fetchall())

    def last_steps(self) -> dict[str, float]:
        """Return the time of each domain's last step (seconds since the epoch), by UUID."""
        with self._explained():
            return dict(self._db.execute("SELECT uuid, max(at) FROM step GROUP BY uuid").fetchall())

    def drained(self) -> set[str]:
        """Return the names of drained pools."""
        with self._explained():
            return {pool for (pool,) in self._db.execute("SELECT pool FROM drained")}

    # Rows to values

    def _reservations(self, where: str, *values: str) -> list[Reservation]:
        return list(self._each(where, *values))

    def _each(self, where: str, *values: str) -> Iterator[Reservation]:
        with self._explained():
            rows = self._db.execute(
                f"{_RESERVATIONS} WHERE {where} ORDER BY name, reservation.uuid, extent.id, share.rowid",
                values,  # the condition is a literal of this module
            )
            for (uuid, name, boot_id, phase, since, file), of_one in groupby(rows, lambda row: row[:6]):
                extents = tuple(_extents(row[6:] for row in of_one))
                sequence = self._phases[uuid].sequence if uuid in self._phases else 0
                yield Reservation(uuid, name, boot_id, Phase(phase), since, extents, sequence, file)

    def _extents(self, where: str, *values: str) -> list[Extent]:
        with self._explained():
            rows = self._db.execute(f"{_EXTENTS} WHERE {where} ORDER BY extent.id, share.rowid", values)
            return _extents(rows)


def _canonical(typed: str) -> str:
    """Return a UUID in canonical form, and other text unchanged."""
    try:
        return str(UUID(typed))
    except ValueError:
        return typed


def _extents(rows: Iterable[tuple[Any, ...]]) -> list[Extent]:
    """Return the extents of rows of ``_EXTENT_COLUMNS``: a row for each share, grouped by extent."""
    return [
        Extent(
            id=row[0], uuid=row[1], alias=row[2], segment=SegmentId(row[3]), path=Path(row[4]), size_bytes=row[5],
            page_size=row[6], policy=row[7], state=ExtentState(row[8]), boot_id=row[9], link=row[10],
            shares={share[11]: share[12] for share in of_one if share[11] is not None},
        )
        for number, some in groupby(rows, lambda row: row[0])
        if number is not None
        for of_one in [list(some)]
        for row in of_one[:1]
    ]  # fmt: skip
