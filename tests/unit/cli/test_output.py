# SPDX-License-Identifier: GPL-2.0-or-later
"""What is printed: masked, harmless to terminals, exact for programs."""

from __future__ import annotations

import json

import pytest

from virt_dmem.cli.output import Output, masked


def test_passwords_are_masked_whatever_quotes_they_are_in() -> None:
    xml = b"""<graphics passwd="it's" passwdValidTo="2026"/><graphics passwd='say "it"' connected='keep'/>"""
    shown = masked(xml)
    assert "it" not in shown
    assert "passwdValidTo" in shown
    assert "connected='keep'" in shown


def test_a_large_answer_is_printed_like_a_small_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"name": f'"gäst{n}"\n', "size": n, "since": n / 3, "extents": [{"nodes": [0, n]}, {}], "steps": []}
        for n in range(3)
    ]
    printed = []
    for largest in (1 << 30, 0):
        monkeypatch.setattr("virt_dmem.cli.output._LARGE", largest)
        Output(as_json=True).result(domains=rows, missing=None, all=True)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert json.loads(printed[1])["domains"] == rows
