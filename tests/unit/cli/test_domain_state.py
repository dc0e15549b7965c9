# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a domain holds no memory is told by libvirt: a typo is no shut-off domain."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rig.prezero import domain as memory_of
from virt_dmem.cli import domain_state
from virt_dmem.errors import AdoptionRefused, DomainRefused
from virt_dmem.hypervisor.connection import DomainInfo
from virt_dmem.units import GIB

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
SHUT_OFF = DomainInfo(UUID, "web", active=False, managed=False, applied=False, memory=None)
MEMORY = replace(memory_of(UUID, 1024, pool="guests"), max_bytes=8 * GIB)
APPLIED = replace(SHUT_OFF, managed=True, applied=True, memory=MEMORY)
REFUSAL = AdoptionRefused("Rule nova takes it.", hint="Do this.")
ADOPTED = replace(SHUT_OFF, adopted=True, memory=replace(MEMORY, rule="nova"))


class Libvirt:
    """A fake of libvirt with one domain."""

    def __init__(self, found: DomainInfo) -> None:
        self.found = found

    def __enter__(self) -> Libvirt:
        return self

    def __exit__(self, *_: object) -> None: ...

    def find(self, _typed: str) -> str:
        return self.found.uuid

    def info(self, _uuid: str) -> DomainInfo:
        return self.found


@pytest.mark.parametrize(
    ("found", "message", "hint"),
    [
        (SHUT_OFF, "Domain web is shut off, and is not applied", f"virt-dmem apply {UUID}"),
        (replace(SHUT_OFF, managed=True), "and asks for pool memory and is not rewritten", "virt-dmem apply"),
        (replace(SHUT_OFF, active=True), "web runs on ordinary memory, and is not applied", "next start"),
        (APPLIED, "at its next start it takes 4 MiB of pool guests, and up to 8 GiB", "--applied"),
        (replace(APPLIED, active=True), "it is applied, and was not when it started", "Shut it down and start it"),
        (ADOPTED, "at its next start it takes 4 MiB of pool guests", f"virt-dmem rules {UUID}"),
        (replace(ADOPTED, active=True), "it is adopted by rule nova, and was not when it started", "start it"),
        (replace(SHUT_OFF, refusal=REFUSAL), "Rule nova takes it.", "Do this."),
    ],
    ids=["shut-off", "managed", "running", "applied", "started-before", "adopted", "adopted-later", "refused"],
)  # fmt: skip
def test_each_reason_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, found: DomainInfo, message: str, hint: str
) -> None:
    monkeypatch.setattr(domain_state, "Hypervisor", lambda _uri, **_: Libvirt(found))
    monkeypatch.setattr(
        "virt_dmem.cli.domain_state.how_to_apply", lambda uuid, _name: f"Run: virt-dmem apply {uuid}"
    )
    args: Any = SimpleNamespace(connect="fake", config=None, domain="web")
    told = domain_state.holds_nothing(args, DomainRefused("It holds nothing.", hint=""))
    assert message in told.message
    assert hint in told.hint


def test_where_libvirt_cannot_be_asked_the_daemon_s_word_stays(tmp_path: object) -> None:
    args: Any = SimpleNamespace(connect="qemu+unix:///system?socket=/nonexistent", config=None, domain="web")
    told = domain_state.holds_nothing(args, DomainRefused("It holds nothing.", hint="See the list."))
    assert told.message == "It holds nothing."
    assert told.hint.startswith(
        "See the list. Whether there is such a domain is not known: libvirt does not answer"
    )
