# SPDX-License-Identifier: GPL-2.0-or-later
"""What we write is in the words of libvirt, QEMU and the kernel: those that we gave up stay away."""

from __future__ import annotations

import re

import pytest

from tests.rig.repository import REPOSITORY

GIVEN_UP = {
    r"(domain|guest)s? that runs?\b": "running domain",
    r"\bmend(s|ed|ing)?\b": "fix, repair, reconcile",
    r"\b(go(es)?|went) past (us|virt-dmem)\b": "bypass",
    r"\blets? go\b": "hot-unplug, release",
    r"\bmade ready\b|\bready ahead\b": "pre-zeroed",
    r"\bits own again\b": "restored",
    r"\bhands? over\b": "grant access",
    r"\bbr(ing|ings|ought) in\b": "populate",
    r"\bkeeps? house\b": "housekeeping",
    r"\blook whether\b|\beverything is in its place\b": "verify, check",
    r"\bwhat building it taught\b": "platform notes",
    r"\bputs? to rest\b": "pause",
    r"\blook who\b": "find out who",
    r"\b(is|are) no (multiple|choice)\b": "is not a multiple",
    r"\b(if|that) (it|they) shall\b": "if it is to",
    r"\blets? (you|users?|them) in\b": "deny access, permit",
}
"""Patterns, and what is written in their place."""
PLACES = ("README.md", "CONTRIBUTING.md", "docs", "virt_dmem", "hooks", "packaging", "systemd", "xml-templates")
SUFFIXES = {".md", ".py", ".sh", ".service", ".socket", ".toml", ".conf", ".c"}
NOT_OURS = re.compile(r"/(node_modules|build)/")


def texts() -> list[tuple[str, str]]:
    """Return name and content of each file that an operator or developer reads."""
    found = []
    for place in PLACES:
        top = REPOSITORY / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and not NOT_OURS.search(str(path)):
                found.append((str(path.relative_to(REPOSITORY)), path.read_text()))
    assert len(found) > 200
    return found


TEXTS = texts()


@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_a_word_that_we_gave_up_is_nowhere(pattern: str) -> None:
    found = [
        f"{name}:{content.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, content in TEXTS
        for match in re.finditer(pattern, content, re.IGNORECASE)
    ]
    assert found == [], f"write: {GIVEN_UP[pattern]}"
