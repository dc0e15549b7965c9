# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests are checked, and a large document delays nobody."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.rig import nova
from tests.rig.daemon_parts import parts_with_pools
from tests.rig.domain_documents import domain as document
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.config.schema import AdoptRule
from virt_dmem.daemon.wiring import Components
from virt_dmem.errors import AdoptionRefused, DmemError, UsageError

NS = "https://virt-dmem.dev/xmlns/domain/1.0"

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def domain(body: str = "", *, memory: str = "1048576", name: str = "a", attributes: str = "") -> bytes:
    return (
        f"<domain type='kvm' id='1'{attributes}><name>{name}</name><uuid>{UUID}</uuid>"
        f"<metadata><dmem:memory xmlns:dmem='{NS}'/></metadata><memory>{memory}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>{body}</domain>"
    ).encode()


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "stopped", "release", "migrate"])
def test_while_a_hook_s_large_document_is_read_others_are_served(parts: Components, operation: str) -> None:
    xml = domain("<devices>" + "<disk type='file'/>" * 100_000 + "</devices>")
    passes = 0

    async def others() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    async def story() -> None:
        beside = asyncio.create_task(others())
        with suppress(DmemError):
            if operation == "migrate":
                await parts.service.filter_xml(xml)
            else:
                await parts.service.hook(operation, xml, lambda _: None)
        beside.cancel()

    asyncio.run(story())
    assert passes > 3


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e300, 10**5000], ids=range(6))
def test_a_number_that_comes_over_the_socket_and_cannot_be_is_refused(parts: Components, number: float) -> None:
    def attach(**numbers: float) -> object:
        wanted: dict[str, Any] = {"size_bytes": 1 << 30, "cell": 0, "node": -1} | numbers
        return asyncio.run(parts.service.attach("x", model="dimm", persistent=False, report=tell, **wanted))

    def tell(_: object) -> None:
        """Report nothing."""

    asks: list[Callable[[], object]] = [
        lambda: parts.service.pause_apply(number),
        lambda: asyncio.run(parts.service.detach("x", "dimm0", number, tell)),
        lambda: asyncio.run(parts.service.resize("x", "dimm0", 0, number, tell)),
    ]
    if isinstance(number, int):
        asks += [
            lambda: attach(size_bytes=number),
            lambda: attach(size_bytes=-1),
            lambda: attach(cell=number),
            lambda: attach(node=number),
            lambda: asyncio.run(parts.service.resize("x", "dimm0", number, 1, tell)),
            lambda: asyncio.run(parts.service.resize("x", "dimm0", -4096, 1, tell)),
        ]
    for ask in asks:
        with pytest.raises(UsageError) as caught:
            ask()
        assert len(str(caught.value)) < 500
    assert not parts.alerts.apply_is_paused()


@pytest.mark.parametrize("began", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_hook_with_an_impossible_time_of_its_beginning_is_served(parts: Components, began: float) -> None:
    asyncio.run(parts.service.hook("release", domain(), lambda _: None, began))
    assert [step.step for step in parts.ledger.steps(UUID)] == ["release"]


def test_a_rejected_start_is_in_the_log_with_its_code(parts: Components, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"), pytest.raises(DmemError) as rejected:
        asyncio.run(parts.service.hook("prepare", domain(name="web1"), lambda _: None))
    (line,) = [record.getMessage() for record in caplog.records if "web1" in record.getMessage()]
    assert line.startswith(f"domain web1: rejected at prepare [{rejected.value.code}]: {rejected.value.message}")


FILES = f"<memoryBacking>{nova.FILE_BACKED}</memoryBacking>"


@in_own_mount_namespace
def test_a_rule_decides_at_prepare_and_the_ledger_from_then_on(tmp_path: Path) -> None:
    rules = (AdoptRule(rule="mine", domain="vm", pool="p"), AdoptRule(domain="no", unsuitable="refuse"))
    parts = parts_with_pools(tmp_path, rules=rules)
    small = "<memory unit='MiB'>8</memory>"
    xml, changed = document(FILES, memory=small), document("", memory=small).replace(b">vm<", b">other<")

    def hook(operation: str, xml: bytes) -> object:
        return asyncio.run(parts.service.hook(operation, xml, lambda _: None))

    assert hook("start", xml) == [], "it was prepared when no rule took it"
    hook("prepare", xml)
    (held,) = parts.ledger.reservations()
    assert (held.name, held.extents[0].segment) == ("vm", "p")
    hook("stopped", changed)
    hook("release", changed)
    assert list(parts.ledger.reservations()) == []
    hook("prepare", xml)
    hook("prepare", changed)  # libvirtd ended between the two
    assert list(parts.ledger.reservations()) == []
    with pytest.raises(AdoptionRefused, match="Rule 2 of"):
        hook("prepare", document().replace(b">vm<", b">no<"))
    assert b'code="adoption-refused"' in parts.metrics.exposition()
    asyncio.run(parts.close())
