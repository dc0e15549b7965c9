# SPDX-License-Identifier: GPL-2.0-or-later
"""When an alert is due, from facts alone; tests/libvirt/test_alerts.py has the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from virt_dmem.allocation.models import Extent, ExtentState, Phase, PhaseChange
from virt_dmem.domain_xml.live import Guest, MemoryDevice, read_guest
from virt_dmem.monitoring.alert_rules import Facts, due

NOW = 1000.0
"""Of the monotonic clock, in seconds."""
MIB = 1 << 20
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def guest(*devices: MemoryDevice, managed: bool = True) -> Guest:
    return Guest("uuid-1", "guest1", managed, devices)


def standing(phase: Phase, age: float = 100) -> dict[str, PhaseChange]:
    return {"uuid-1": PhaseChange(phase, 0.0, uptime=NOW - age)}


def codes(facts: Facts) -> list[str]:
    return [alert.code for alert in due(facts)]


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({}, ["guest-outside-pool"]),
        (standing(Phase.RUNNING), []),
        (standing(Phase.STOPPED), []),
        (standing(Phase.LINKED, age=1), []),
        (standing(Phase.LINKED), ["guest-outside-pool"]),
        (standing(Phase.PREPARED), ["guest-outside-pool"]),
    ],
    ids=["unknown", "running", "stopping", "starting", "never started", "never linked"],
)
def test_a_guest_is_outside_unless_the_ledger_saw_it_start(
    held: dict[str, PhaseChange], expected: list[str]
) -> None:
    assert codes(Facts(NOW, guests=[guest()], phases=held)) == expected


def test_a_guest_that_never_asked_for_pool_memory_is_no_alert() -> None:
    device = MemoryDevice("dimm0", "dimm", MIB)
    assert codes(Facts(NOW, guests=[guest(device, managed=False)])) == []


def test_a_guest_that_a_rule_takes_and_that_runs_outside_is_an_alert_that_names_the_rule() -> None:
    (alert,) = due(Facts(NOW, guests=[replace(guest(managed=False), rule="nova")]))
    assert alert.code == "guest-outside-pool"
    assert "is taken by rule nova but runs outside of any pool" in alert.message
    assert "unless it was started before there was that rule" in alert.hint


def test_a_guest_whose_qemu_is_gone_is_no_alert() -> None:
    assert codes(Facts(NOW, guests=[guest()], is_alive=lambda _: False)) == []


PCI = "<hostdev mode='subsystem' type='pci'><alias name='{}'/></hostdev>"


def live(devices: str) -> Guest:
    return read_guest(
        f"<domain type='kvm'><name>g</name><uuid>{UUID}</uuid><devices>{devices}</devices></domain>".encode()
    )


def test_each_host_device_on_memory_without_struct_pages_is_an_alert_until_it_is_gone() -> None:
    both = live(PCI.format("hostdev0") + PCI.format("hostdev1"))
    first, second = due(Facts(NOW, guests=[both], on_raw_memory={UUID: "dm"}))
    assert first.code == second.code == "device-on-raw-memory"
    assert "Domain g runs on pool dm" in first.message
    assert "host device hostdev0 is passed through by VFIO" in first.message
    assert first.subject != second.subject
    assert first.hint.startswith("Remove host device hostdev0 ")
    assert codes(Facts(NOW, guests=[live(PCI.format("hostdev1"))], on_raw_memory={UUID: "dm"})) == [first.code]
    assert codes(Facts(NOW, guests=[live("")], on_raw_memory={UUID: "dm"})) == []
    assert codes(Facts(NOW, guests=[both])) == []


def test_a_node_that_lacks_what_it_gave_is_named() -> None:
    reserved = {("fast", 0): 3 * MIB, ("fast", 1): MIB, ("slow", -1): MIB}
    capacity = {("fast", 0): 2 * MIB, ("fast", 1): 2 * MIB, ("slow", -1): MIB}
    (alert,) = due(Facts(NOW, capacity=capacity, reserved=reserved))
    assert alert.subject == "fast"
    assert "3 MiB of 2 MiB on node 0" in alert.message


def test_a_pool_that_is_gone_with_its_record_is_short() -> None:
    assert codes(Facts(NOW, reserved={("gone", 0): MIB})) == ["pool-short-of-reservations"]


def test_a_pause_is_an_alert_as_long_as_it_lasts() -> None:
    assert codes(Facts(NOW, paused_until=1_700_000_000.0)) == ["apply-paused"]
    assert codes(Facts(NOW, paused_until=None)) == []


def test_a_libvirt_that_is_away_is_an_alert_after_a_minute_and_only_where_domains_hold_memory() -> None:
    held = {UUID: PhaseChange(Phase.RUNNING, 0.0)}
    assert codes(Facts(NOW, phases=held, libvirt_gone_seconds=59.0)) == []
    (alert,) = due(Facts(NOW, phases=held, libvirt_gone_seconds=61.0))
    assert (alert.code, "and 1 domain holds pool memory" in alert.message) == ("libvirt-unreachable", True)
    assert codes(Facts(NOW, libvirt_gone_seconds=1e6)) == []


def test_memory_devices_are_read_from_live_xml_by_their_alias() -> None:
    found = read_guest(
        b"""<domain type='kvm' id='3'><name>guest1</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
        <metadata><dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata><devices>
        <memory model='dimm'><target><size unit='KiB'>1024</size></target><alias name='dimm0'/></memory>
        <memory model='virtio-mem'><target><size unit='KiB'>2048</size></target><alias name='ua-grow'/></memory>
        <memory model='nvdimm'><target><size unit='KiB'>4096</size></target><alias name='nvdimm0'/></memory>
        </devices></domain>"""
    )
    assert found.managed
    assert found.devices == (MemoryDevice("dimm0", "dimm", MIB), MemoryDevice("ua-grow", "virtio-mem", 2 * MIB))


def test_of_what_others_can_cause_in_any_number_some_are_named_and_the_rest_is_counted() -> None:
    extent = Extent(
        1, UUID, "pc.ram", "p", Path("/p"), MIB, 4096, "none", ExtentState.QUARANTINED, "boot", "", {0: MIB}
    )
    many = [replace(extent, path=Path(f"/p/{number}")) for number in range(5000)]
    paths = {str(one.path): MIB for one in many}
    for facts in (
        Facts(NOW, quarantined=many),
        Facts(NOW, enlarged=paths),
        Facts(NOW, failed=dict.fromkeys(paths, "no")),
    ):
        *named, rest = due(facts)
        assert len(named) == 100
        assert rest.code == named[0].code
        assert "4900 more" in rest.message
