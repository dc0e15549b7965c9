# SPDX-License-Identifier: GPL-2.0-or-later
"""A rewritten domain whose request is gone is told of until it is applied, unapplied or undefined."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from virt_dmem.allocation.remembered import Remembered
from virt_dmem.daemon.lost_requests import LostRequests
from virt_dmem.daemon.wiring import Components
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.traces import Trace
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.runtime.attempts import Attempts

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
APPLIED = DomainInfo(UUID, "web", active=False, managed=True, applied=True, memory=None, request=b"<request/>")
RAW = replace(APPLIED, managed=False, applied=False, request=b"")


@pytest.fixture
def lost_requests(parts: Components) -> LostRequests:
    return LostRequests(Remembered(parts.config.daemon.state_dir), parts.alerts, Attempts())


def alerts(parts: Components) -> list[tuple[str, str]]:
    return [(alert.code, alert.subject) for alert in parts.alerts.refresh()]


@pytest.mark.parametrize("trace", [Trace.BACKING, Trace.MONITOR, Trace.MONITOR_ALONE])
@pytest.mark.parametrize("end", ["applied", "restored", "undefined", "not listed"])
def test_a_loss_is_an_alert_until_it_is_over(
    parts: Components, lost_requests: LostRequests, trace: Trace, end: str
) -> None:
    remembered = parts.service.remembered
    asyncio.run(lost_requests.defined(APPLIED))
    assert (remembered.find(UUID), alerts(parts)) == (b"<request/>", [])
    asyncio.run(lost_requests.listed([replace(RAW, trace=trace)]))
    assert alerts(parts) == [("request-lost", UUID)]
    assert remembered.find(UUID) == b"<request/>", "to put it back"
    if end == "applied":
        asyncio.run(lost_requests.defined(APPLIED))
    elif end == "restored":
        asyncio.run(lost_requests.defined(RAW))
    elif end == "undefined":
        lost_requests.undefined(UUID)
    else:
        parts.alerts.forget_definitions([])
        asyncio.run(lost_requests.listed([]))
    assert alerts(parts) == []
    assert bool(remembered.find(UUID)) is (end != "restored")


@pytest.fixture
def again(parts: Components) -> Callable[[], LostRequests]:
    """Return what those of the next virt-dmemd are."""
    return lambda: LostRequests(Remembered(parts.config.daemon.state_dir), parts.alerts, Attempts())


@pytest.mark.parametrize("noticed", [True, False])
def test_a_domain_that_is_undefined_and_defined_without_its_request_within_a_day_has_lost_it(
    parts: Components, lost_requests: LostRequests, again: Callable[[], LostRequests], *, noticed: bool
) -> None:
    file = Path(parts.config.daemon.state_dir, "applied", UUID)
    asyncio.run(lost_requests.defined(APPLIED))
    os.utime(file, times=(0, 0))  # applied long ago
    if noticed:
        lost_requests.undefined(UUID)
    else:  # virt-dmemd, or libvirtd, did not run
        lost_requests = again()
    asyncio.run(lost_requests.listed([]))
    asyncio.run(lost_requests.retry())
    asyncio.run(lost_requests.defined(replace(RAW, trace=Trace.BACKING)))
    assert alerts(parts) == [("request-lost", UUID)]
    lost_requests.undefined(UUID)
    assert alerts(parts) == []
    for hours, remembered in ((23, True), (25, False)):
        os.utime(file, times=(time.time() - hours * 3600,) * 2)
        lost_requests = again()
        asyncio.run(lost_requests.listed([]))
        asyncio.run(lost_requests.retry())
        assert file.exists() is remembered
    asyncio.run(lost_requests.defined(replace(RAW, trace=Trace.BACKING)))
    assert alerts(parts) == [], "others write the same"


def test_a_clock_that_is_set_while_virt_dmemd_runs_shortens_no_day_and_prolongs_none(
    parts: Components, lost_requests: LostRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, wall, passed = Path(parts.config.daemon.state_dir, "applied", UUID), time.time(), time.monotonic()
    asyncio.run(lost_requests.defined(APPLIED))
    lost_requests.undefined(UUID)
    for jump in (-(10**9), 10**9):
        monkeypatch.setattr(time, "time", lambda jump=jump: wall + jump)
        asyncio.run(lost_requests.listed([]))
        asyncio.run(lost_requests.retry())
        assert file.exists()
    monkeypatch.setattr(time, "monotonic", lambda: passed + 25 * 3600)
    asyncio.run(lost_requests.retry())
    assert not file.exists()


def test_a_domain_that_is_defined_again_has_its_day_again(
    parts: Components, lost_requests: LostRequests, again: Callable[[], LostRequests]
) -> None:
    file = Path(parts.config.daemon.state_dir, "applied", UUID)
    asyncio.run(lost_requests.defined(APPLIED))
    lost_requests.undefined(UUID)
    asyncio.run(lost_requests.defined(APPLIED))
    os.utime(file, times=(0, 0))
    lost_requests = again()  # it was undefined before that one began
    asyncio.run(lost_requests.listed([]))
    asyncio.run(lost_requests.retry())
    assert file.exists()


def test_what_somebody_removes_is_written_again(parts: Components, lost_requests: LostRequests) -> None:
    asked: list[str] = []
    lost_requests.on_removed = lambda: asked.append("all domains")
    other = replace(APPLIED, uuid=UUID.replace("c7", "aa"))
    asyncio.run(lost_requests.listed([APPLIED, other]))
    asyncio.run(lost_requests.defined(replace(RAW, uuid=other.uuid)))  # it was restored
    asyncio.run(lost_requests.retry())
    assert asked == []
    shutil.rmtree(Path(parts.config.daemon.state_dir, "applied"))
    for _ in range(2):
        asyncio.run(lost_requests.retry())
        assert asked == ["all domains"]
    asyncio.run(lost_requests.listed([APPLIED]))
    assert parts.service.remembered.find(UUID) == b"<request/>"


def test_what_others_write_and_a_transient_domain_are_no_loss(
    parts: Components, lost_requests: LostRequests
) -> None:
    asyncio.run(lost_requests.defined(replace(RAW, trace=Trace.BACKING)))
    asyncio.run(lost_requests.defined(replace(APPLIED, persistent=False)))
    assert (parts.service.remembered.uuids(), alerts(parts)) == (set(), [])


def test_a_domain_that_a_rule_adopts_has_lost_nothing_until_the_rule_is_gone(
    parts: Components, lost_requests: LostRequests
) -> None:
    asyncio.run(lost_requests.defined(APPLIED))
    asyncio.run(lost_requests.defined(replace(RAW, trace=Trace.BACKING, adopted=True)))
    assert (parts.service.remembered.find(UUID), alerts(parts)) == (b"<request/>", [])
    asyncio.run(lost_requests.listed([replace(RAW, trace=Trace.BACKING)]))
    assert alerts(parts) == [("request-lost", UUID)]


def test_a_domain_that_is_to_be_applied_again_is_remembered_meanwhile(
    parts: Components, lost_requests: LostRequests
) -> None:
    asyncio.run(lost_requests.defined(APPLIED))
    asyncio.run(lost_requests.defined(replace(APPLIED, applied=False, request=b"")))
    assert (parts.service.remembered.find(UUID), alerts(parts)) == (b"<request/>", [])


def test_a_request_without_what_it_replaced_takes_no_place_of_one_with_it(
    parts: Components, lost_requests: LostRequests
) -> None:
    whole = f"<d:memory xmlns:d='{NAMESPACE}' pool='a'><d:replaced/></d:memory>".encode()
    other = f"<d:memory xmlns:d='{NAMESPACE}' pool='b'><d:replaced/></d:memory>".encode()
    bare = f"<d:memory xmlns:d='{NAMESPACE}' pool='replaced'/>".encode()
    for request, remembered in ((bare, bare), (whole, whole), (bare, whole), (other, other)):
        asyncio.run(lost_requests.defined(replace(APPLIED, request=request)))
        assert parts.service.remembered.find(UUID) == remembered


def test_what_cannot_be_written_is_an_alert_and_written_later(parts: Components) -> None:
    remembered = Remembered(parts.config.daemon.state_dir)
    lost_requests = parts.lost_requests
    asyncio.run(lost_requests.retry())
    blocked = Path(parts.config.daemon.state_dir, "applied")
    blocked.write_text("a stand-in for a full disk")
    others = [replace(APPLIED, uuid=UUID.replace("c7", f"{number:02}")) for number in range(3)]
    asyncio.run(lost_requests.listed([APPLIED, *others]))
    for _ in range(2):
        asyncio.run(lost_requests.retry())
        (alert,) = parts.alerts.refresh()  # the first that fails stands for all
        assert (alert.code, "what was replaced in domain" in alert.message) == ("reconcile-failed", True)
        assert str(blocked) in alert.message
    lost_requests.undefined(others[0].uuid)
    blocked.unlink()
    asyncio.run(lost_requests.retry())
    assert parts.alerts.refresh() == []
    assert remembered.uuids() == {UUID, others[1].uuid, others[2].uuid}
    asyncio.run(lost_requests.retry())
