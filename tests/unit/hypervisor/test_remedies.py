# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that is named works: for a domain that libvirt has stored, and for a transient one."""

from __future__ import annotations

from pathlib import Path

import pytest

from virt_dmem.hypervisor import remedies

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def test_the_command_is_that_for_the_kind_of_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "DEFINITIONS_DIR", tmp_path)
    (tmp_path / "stored one.xml").touch()
    assert remedies.how_to_apply(UUID, "stored one") == f"Run: virt-dmem apply {UUID}"
    assert remedies.how_to_apply(UUID, "stored one", "--pool x") == f"Run: virt-dmem apply {UUID} --pool x"
    assert "virt-dmem rewrite --pool x < XML" in remedies.how_to_apply(UUID, "created", "--pool x")


def test_where_definitions_cannot_be_seen_a_domain_counts_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "DEFINITIONS_DIR", tmp_path / "none")
    assert not remedies.is_transient("created")
