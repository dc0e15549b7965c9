# SPDX-License-Identifier: GPL-2.0-or-later
"""Tenants choose names: what is asked by a domain's key never finds another that is only named like it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.daemon.wiring import Components
from virt_dmem.errors import DomainRefused, HypervisorError, UsageError
from virt_dmem.hypervisor.connection import Hypervisor

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


# libvirt


def define(connection: libvirt.virConnect, uuid: str, name: str) -> libvirt.virDomain:
    return connection.defineXML(
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>"
        "<os><type>hvm</type></os></domain>"
    )


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    """libvirt's own test driver, with a domain that is named as the UUID of one that does not exist (any more)."""
    with Hypervisor("test:///default") as found:
        define(found._connection, OURS, THEIRS)
        yield found
        found._connection.lookupByUUIDString(OURS).undefine()


def test_by_its_uuid_no_domain_is_found_that_is_only_named_so(hypervisor: Hypervisor) -> None:
    by_key: list[Callable[[], object]] = [
        lambda: hypervisor.inactive_xml(THEIRS),
        lambda: hypervisor.is_active(THEIRS),
        lambda: hypervisor.is_persistent(THEIRS),
        lambda: hypervisor.redefine(THEIRS, lambda now: now),
        lambda: hypervisor.attach(THEIRS, "<memory/>", persistent=False),
        lambda: hypervisor.detach(THEIRS, "dimm0", persistent=False),
        lambda: hypervisor.update(THEIRS, "<memory/>"),
    ]
    for ask in by_key:
        with pytest.raises(HypervisorError, match="knows no domain"):
            ask()
    assert hypervisor.info(THEIRS) is None
    assert hypervisor.live_xml(THEIRS) is None


def test_a_person_s_word_is_a_uuid_first_then_an_id_or_a_name(hypervisor: Hypervisor) -> None:
    connection = hypervisor._connection
    default = connection.lookupByName("test")
    assert hypervisor.find("test") == default.UUIDString()
    assert hypervisor.find(str(default.ID())) == default.UUIDString()
    assert hypervisor.find(THEIRS) == OURS
    theirs = define(connection, THEIRS, "theirs")
    try:
        assert hypervisor.find(THEIRS) == THEIRS
        assert hypervisor.find(THEIRS.upper()) == THEIRS
    finally:
        theirs.undefine()
    with pytest.raises(HypervisorError, match=r"knows no domain '9{30}'"):
        hypervisor.find("9" * 30)


def test_a_number_that_is_the_id_of_one_and_the_name_of_another_is_refused(hypervisor: Hypervisor) -> None:
    connection = hypervisor._connection
    default = connection.lookupByName("test")
    named = define(connection, OTHER, str(default.ID()))
    try:
        with pytest.raises(UsageError, match="2 domains") as caught:
            hypervisor.find(str(default.ID()))
        assert OTHER in str(caught.value)
        assert default.UUIDString() in str(caught.value)
    finally:
        named.undefine()
