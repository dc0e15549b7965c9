# SPDX-License-Identifier: GPL-2.0-or-later
"""Tenants choose names: a query by UUID never finds a domain that is only named like it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.daemon.wiring import Components
from virt_dmem.errors import DomainRefused, UsageError

NAMESPACE = "https://virt-dmem.dev/xmlns/domain/1.0"
OURS = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
THEIRS = "5b7e6f3c-0000-4000-8000-000000000001"
OTHER = "5b7e6f3c-0000-4000-8000-000000000002"
MIB = 1 << 20


def reserve(ledger: Ledger, uuid: str, name: str, phase: Phase = Phase.RUNNING) -> None:
    extent = ExtentPlan("ram-node0", "p", MIB, 4096, "none", ((-1, MIB),))
    paths = {"ram-node0": Path("/nowhere", f"libvirt-{uuid}", "ram-node0")}
    ledger.reserve(Plan(uuid, name, (extent,)), paths, {("p", -1): 1 << 40})
    ledger.set_phase(uuid, phase)


def xml(uuid: str, name: str) -> bytes:
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>"
        f"<metadata><d:memory xmlns:d='{NAMESPACE}'/></metadata></domain>"
    ).encode()


@pytest.mark.parametrize("operation", ["stopped", "release"])
def test_the_end_of_a_domain_is_nothing_to_one_that_is_named_as_its_uuid(parts: Components, operation: str) -> None:
    reserve(parts.ledger, OURS, THEIRS, Phase.PREPARED)
    asyncio.run(parts.service.hook(operation, xml(THEIRS, "theirs"), lambda _: None))
    (held,) = parts.ledger.reservations()
    assert (held.uuid, held.phase) == (OURS, Phase.PREPARED)


def test_what_qemu_and_libvirt_say_of_a_domain_is_not_taken_for_another_s(parts: Components) -> None:
    reserve(parts.ledger, OURS, THEIRS)
    asyncio.run(parts.guest_events.qemu_event(THEIRS, "MEMORY_FAILURE", {}))
    assert parts.ledger.failures() == []
    assert asyncio.run(parts.service.show_backends(THEIRS)) == []


def test_a_person_finds_a_domain_by_uuid_however_it_is_written_and_by_name(parts: Components) -> None:
    reserve(parts.ledger, OURS, THEIRS)
    reserve(parts.ledger, THEIRS, "theirs")
    for typed in (THEIRS, THEIRS.upper(), THEIRS.replace("-", ""), "theirs"):
        assert parts.service.show_domain(typed)[0].uuid == THEIRS
    assert parts.service.show_domain(OURS)[0].uuid == OURS


def test_a_name_that_two_domains_have_is_refused_with_both_uuids(parts: Components) -> None:
    reserve(parts.ledger, OURS, "web")  # it was renamed or undefined since, and another took its name
    reserve(parts.ledger, THEIRS, "web")
    asks: list[Callable[[], object]] = [
        lambda: parts.service.show_domain("web"),
        lambda: asyncio.run(parts.service.detach("web", "dimm0", 1, lambda _: None)),
        lambda: asyncio.run(parts.service.resize("web", "dimm0", 0, 1, lambda _: None)),
    ]
    for ask in asks:
        with pytest.raises(UsageError, match="2 domains") as caught:
            ask()
        assert OURS in str(caught.value)
        assert THEIRS in str(caught.value)


def test_a_domain_that_nobody_knows_is_named(parts: Components) -> None:
    with pytest.raises(DomainRefused, match="ghost"):
        parts.service.show_domain("ghost")


def test_the_names_of_all_that_hold_memory_are_found_by_uuid(parts: Components) -> None:
    reserve(parts.ledger, OURS, "web")
    reserve(parts.ledger, THEIRS, OURS)
    assert parts.ledger.names() == {OURS: "web", THEIRS: OURS}
