# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that each alert has one code of its own, an explanation, a row in the document and a rule."""

from __future__ import annotations

import re

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.errors import explain
from virt_dmem.monitoring import alert_codes
from virt_dmem.monitoring.alert_codes import EXPLANATIONS

DOCS = REPOSITORY / "docs/reference"


def test_every_code_is_explained() -> None:
    codes = {getattr(alert_codes, name) for name in alert_codes.__all__ if name != "EXPLANATIONS"}
    assert codes == set(EXPLANATIONS)


def test_no_alert_has_the_code_of_an_error() -> None:
    for code in EXPLANATIONS:
        with pytest.raises(Exception, match="no code"):
            explain(code, {})


def test_every_alert_is_in_the_document_and_in_a_rule() -> None:
    document = (DOCS / "alerts.md").read_text("utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", document, re.MULTILINE) == list(EXPLANATIONS)
    rules = (DOCS / "prometheus-rules.yml").read_text()
    for code in EXPLANATIONS:
        # how much is quarantined says more than how often
        assert code in rules or code == "extent-quarantined"
