# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain is applied when it is defined, unless another tool keeps reverting that, or apply is paused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from tests.rig.domain_documents import APPLIED, domain
from virt_dmem.config.schema import AdoptRule
from virt_dmem.daemon.auto_apply import MOST_TIMES, AutoApply
from virt_dmem.daemon.wiring import Components
from virt_dmem.domain_xml.adoption.adopt import adopt
from virt_dmem.domain_xml.reader import DomainDocument, read_domain
from virt_dmem.domain_xml.rewrite import apply as rewrite
from virt_dmem.errors import AdoptionRefused, HypervisorError, PoolNotFound
from virt_dmem.hypervisor.connection import DomainInfo, Hypervisor
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.record_files import write
from virt_dmem.units import GIB

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
ASKS = (
    f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><memory>1048576</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><metadata>"
    "<d:memory xmlns:d='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata></domain>"
).encode()


class Libvirt:
    """Always has the domain as it was defined at first."""

    def __init__(self, xml: bytes, error: Exception | None = None) -> None:
        self.xml = xml
        self.error = error
        self.redefined = 0
        self.persistent = True

    def inactive_xml(self, _uuid: str) -> bytes:
        return self.xml

    def live_xml(self, _uuid: str) -> None:
        """It does not run."""

    def info(self, uuid: str) -> DomainInfo:
        return DomainInfo(uuid, "web", False, True, False, None, persistent=self.persistent)

    def redefine(self, _uuid: str, _transform: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
        if self.error is not None:
            raise self.error
        self.redefined += 1
        return self.xml, self.xml


@pytest.fixture
def outcomes() -> Counter[str]:
    return Counter()


def write_pool(parts: Components, name: str, size_bytes: int = GIB) -> None:
    parts.config.pool_records_dir.mkdir(parents=True, exist_ok=True)
    mount = f"{parts.config.pools_dir}/{name}"
    write(parts.config, PoolRecord(name, "tmpfs", 4096, mount, {-1: NodeShare(size_bytes)}, state="ready"))


@pytest.fixture
def auto_apply(parts: Components, outcomes: Counter[str]) -> AutoApply:
    """On a host with one pool."""
    write_pool(parts, "only")
    return AutoApply(parts.config, parts.alerts, lambda outcome: outcomes.update([outcome]))


def consider(auto_apply: AutoApply, libvirt: Libvirt, times: int = 1) -> None:
    for _ in range(times):
        asyncio.run(auto_apply.consider(cast("Hypervisor", libvirt), UUID))


def test_a_domain_that_another_tool_reverts_is_left_alone_and_reported(
    parts: Components, auto_apply: AutoApply, outcomes: Counter[str]
) -> None:
    libvirt = Libvirt(ASKS)
    consider(auto_apply, libvirt, MOST_TIMES)
    assert parts.alerts.refresh() == []
    consider(auto_apply, libvirt)
    assert libvirt.redefined == MOST_TIMES
    assert outcomes == {"applied": MOST_TIMES, "fight": 1}
    (alert,) = parts.alerts.refresh()
    assert "web: applied 3 times in 10 s" in alert.message
    auto_apply.forget(UUID)
    assert parts.alerts.refresh() == []


def test_a_domain_that_does_not_ask_for_it_and_a_paused_one_are_not_touched(
    parts: Components, auto_apply: AutoApply, outcomes: Counter[str]
) -> None:
    libvirt = Libvirt(ASKS.replace(b"virt-dmem.dev", b"example.com"))
    consider(auto_apply, libvirt)
    parts.service.pause_apply(60)
    libvirt.xml = ASKS
    consider(auto_apply, libvirt)
    parts.service.resume_apply()
    assert (libvirt.redefined, outcomes) == (0, {})
    consider(auto_apply, libvirt)
    assert outcomes == {"applied": 1}


def test_an_element_that_is_misspelt_is_an_alert_until_it_asks_for_memory(
    parts: Components, auto_apply: AutoApply, outcomes: Counter[str]
) -> None:
    libvirt = Libvirt(ASKS.replace(b"d:memory", b"d:memroy"))
    consider(auto_apply, libvirt)
    (alert,) = parts.alerts.refresh()
    assert (alert.code, alert.subject) == ("request-unfulfilled", UUID)
    assert "Domain web: The metadata of the domain have <memroy> of virt-dmem" in alert.message
    libvirt.xml = ASKS
    consider(auto_apply, libvirt)
    assert parts.alerts.refresh() == []
    assert outcomes == {"failed": 1, "applied": 1}


def test_a_request_that_cannot_be_fulfilled_is_an_alert_until_it_is(
    parts: Components, auto_apply: AutoApply, outcomes: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    libvirt = Libvirt(ASKS, PoolNotFound("There is no pool 'x' on this host.", hint="Create it."))
    consider(auto_apply, libvirt, 2 * MOST_TIMES)
    assert outcomes == {"failed": 1}, "said once, and no fight"
    assert caplog.text.count("automatic apply failed: There is no pool 'x'") == 1
    (alert,) = parts.alerts.refresh()
    assert (alert.code, alert.subject, alert.hint) == ("request-unfulfilled", UUID, "Create it.")
    assert alert.message == "Domain web: There is no pool 'x' on this host."
    assert auto_apply.waiting() == [UUID]
    libvirt.error = HypervisorError("libvirt failed.", hint="")
    consider(auto_apply, libvirt)
    assert "libvirt failed" in parts.alerts.refresh()[0].message
    libvirt.error = None
    consider(auto_apply, libvirt)
    assert (parts.alerts.refresh(), auto_apply.waiting()) == ([], [])


def test_a_request_of_a_domain_that_is_gone_or_transient_is_no_alert(
    parts: Components, auto_apply: AutoApply
) -> None:
    libvirt = Libvirt(ASKS, HypervisorError("It is transient.", hint=""))
    libvirt.persistent = False
    consider(auto_apply, libvirt)
    assert parts.alerts.refresh() == []
    libvirt.persistent = True
    consider(auto_apply, libvirt)
    assert len(parts.alerts.refresh()) == 1
    auto_apply.forget(UUID)
    assert (parts.alerts.refresh(), auto_apply.waiting()) == ([], [])


def test_a_domain_that_is_applied_for_a_pool_that_is_gone_waits_for_it(
    parts: Components, auto_apply: AutoApply
) -> None:
    consider(auto_apply, Libvirt(rewrite(ASKS, pool="gone")))
    (alert,) = parts.alerts.refresh()
    assert (alert.code, "no pool 'gone'" in alert.message) == ("request-unfulfilled", True)


def test_an_applied_domain_that_can_never_start_on_its_pool_waits_for_another_size(
    parts: Components, auto_apply: AutoApply, caplog: pytest.LogCaptureFixture
) -> None:
    write_pool(parts, "only", GIB // 2)
    applied = rewrite(ASKS, pool="only")
    memory = read_domain(applied)
    listed = [DomainInfo(UUID, "web", False, True, True, memory), DomainInfo("2", "b", False, True, True, None)]
    for look in (
        lambda: consider(auto_apply, Libvirt(ASKS)),
        lambda: consider(auto_apply, Libvirt(applied)),
        lambda: asyncio.run(auto_apply.consider_applied(listed)),
    ):
        write_pool(parts, "only", GIB // 2)
        look()
        (alert,) = parts.alerts.refresh()
        assert (alert.code, alert.subject) == ("request-unfulfilled", UUID)
        assert "it does not fit pool only even if that is empty" in alert.message
        assert auto_apply.waiting() == [UUID]
        write_pool(parts, "only", GIB)
        consider(auto_apply, Libvirt(applied))
        assert (parts.alerts.refresh(), auto_apply.waiting()) == ([], [])
    asyncio.run(auto_apply.consider_applied(listed))
    assert parts.alerts.refresh() == []


def test_a_domain_that_a_rule_takes_is_reported_until_the_pool_can_serve_it(
    parts: Components, auto_apply: AutoApply
) -> None:
    document = DomainDocument(domain(APPLIED))
    memory = adopt([AdoptRule(rule="mine", domain="vm", pool="guests")], document)
    adopted = DomainInfo(UUID, "vm", False, False, False, memory, adopted=True)
    asyncio.run(auto_apply.consider_adopted(adopted))
    (alert,) = parts.alerts.refresh()
    assert (alert.code, alert.subject) == ("request-unfulfilled", UUID)
    assert "Rule mine of [[adopt]] takes domain vm" in alert.message
    assert auto_apply.waiting() == [UUID]
    write_pool(parts, "guests", 4096)
    asyncio.run(auto_apply.consider_adopted(adopted))
    assert "even if that is empty" in parts.alerts.refresh()[0].message
    write_pool(parts, "guests")
    asyncio.run(auto_apply.consider_adopted(adopted))
    assert (parts.alerts.refresh(), auto_apply.waiting()) == ([], [])


def test_a_domain_that_a_rule_rejects_is_reported(parts: Components, auto_apply: AutoApply) -> None:
    refusal = AdoptionRefused("no.", hint="")
    rejected = DomainInfo(UUID, "vm", False, False, False, None, refusal=refusal)
    asyncio.run(auto_apply.consider_adopted(rejected))
    (alert,) = parts.alerts.refresh()
    assert (alert.code, alert.message) == ("request-unfulfilled", "no.")
    auto_apply.forget(UUID)
    assert parts.alerts.refresh() == []
