# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents tell people to type: every line of their ``sh`` blocks, and what of it no test can run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.rig.repository import REPOSITORY

__all__ = ["DOCUMENTS", "MANUAL_PAGES", "NOT_RUN", "NOT_RUN_WITH", "examples", "inline", "lines", "why_not_run"]

DOCUMENTS = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")])
MANUAL_PAGES = sorted((REPOSITORY / "docs/man").glob("*.[1-8]"))

NOT_RUN = {
    "make": "it runs this very test, and installs for real; tests/unit/test_install.py and tests/lab do that",
    "systemctl": "there is no systemd in the namespace of the tests; tests/lab has one",
    "journalctl": "the same",
}
"""Commands that are shown and not run with a libvirt of our own, by their first word, and why."""

NOT_RUN_WITH = {
    "--write-grub": "it changes how this host boots; tests/unit/host/test_memory_map.py writes the file elsewhere",
    "--backend dmemfs": "it needs memory that was reserved at boot; tests/lab/test_dmemfs_pool.py has it",
}
"""The same, by an option."""

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(virt-dmem [^`\n]+)`")


def lines(document: Path) -> list[str]:
    """Return every line of the shell blocks of a document, without sudo."""
    blocks = _BLOCK.findall(document.read_text("utf-8"))
    return [line.replace("sudo ", "") for block in blocks for line in block.splitlines() if line.strip()]


def inline(document: Path) -> list[str]:
    """Return every whole ``virt-dmem`` command that stands in the text of a document."""
    return [command for command in _INLINE.findall(document.read_text("utf-8")) if "…" not in command]


def examples(page: Path) -> list[str]:
    """Return every command of a manual page's EXAMPLES."""
    section = page.read_text("utf-8").partition(".SH EXAMPLES\n")[2].partition("\n.SH ")[0]
    text = section.replace("\\-", "-").replace("\\(dq", '"')
    return [line for line in text.splitlines() if re.match(r"(virt-dmem|virsh|systemctl) ", line)]


def why_not_run(line: str) -> str:
    """Return why no test runs this line; empty for one that is run."""
    options = [why for option, why in NOT_RUN_WITH.items() if option in line]
    return NOT_RUN.get(line.split()[0], "") or "".join(options[:1])
