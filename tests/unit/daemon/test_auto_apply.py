# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain is applied when it is defined, unless another tool keeps reverting that, or apply is paused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from virt_dmem.daemon.auto_apply import MOST_TIMES, AutoApply
from virt_dmem.daemon.wiring import Components
from virt_dmem.errors import HypervisorError
from virt_dmem.hypervisor.connection import Hypervisor

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

    def inactive_xml(self, _uuid: str) -> bytes:
        return self.xml

    def live_xml(self, _uuid: str) -> None:
        """It does not run."""

    def redefine(self, _uuid: str, _transform: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
        if self.error is not None:
            raise self.error
        self.redefined += 1
        return self.xml, self.xml


@pytest.fixture
def outcomes() -> Counter[str]:
    return Counter()


@pytest.fixture
def auto_apply(parts: Components, outcomes: Counter[str]) -> AutoApply:
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
    auto_apply.end_fight(UUID)
    assert parts.alerts.refresh() == []


def test_a_domain_that_does_not_ask_for_it_and_a_paused_one_are_not_touched(
    parts: Components, auto_apply: AutoApply, outcomes: Counter[str]
) -> None:
    libvirt = Libvirt(ASKS.replace(b"d:memory", b"d:other"))
    consider(auto_apply, libvirt)
    parts.service.pause_apply(60)
    libvirt.xml = ASKS
    consider(auto_apply, libvirt)
    parts.service.resume_apply()
    assert (libvirt.redefined, outcomes) == (0, {})
    consider(auto_apply, libvirt)
    assert outcomes == {"applied": 1}


def test_what_libvirt_refuses_is_logged_and_counted(
    auto_apply: AutoApply, outcomes: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    consider(auto_apply, Libvirt(ASKS, HypervisorError("libvirt failed.", hint="")))
    assert outcomes == {"failed": 1}
    assert "automatic apply failed: libvirt failed." in caplog.text
