# SPDX-License-Identifier: GPL-2.0-or-later
"""Extract the commands of the documents: all lines of their ``sh`` blocks, and those that no test can run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.rig.repository import REPOSITORY

__all__ = ["DOCUMENTS", "MANUAL_PAGES", "NOT_RUN", "NOT_RUN_WITH", "examples", "inline", "lines", "why_not_run"]

DOCUMENTS = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")])
MANUAL_PAGES = sorted((REPOSITORY / "docs/man").glob("*.[1-8]"))

NOT_RUN = {
    "ansible-playbook": "tests/packages runs the role on a booted host",
    "apt": "tests/packages installs, removes and purges the packages in a root of Debian",
    "cp": "the same",
    "make": "it runs this very test, and installs for real; tests/unit/test_install.py and tests/lab do that",
    "systemctl": "there is no systemd in the namespace of the tests; tests/lab has one",
    "journalctl": "the same",
}
"""Commands that no test runs with a private libvirt, by their first word, and the reason."""

NOT_RUN_WITH = {
    "--write-grub": "it changes how this host boots; tests/unit/host/test_memory_map.py writes the file elsewhere",
    "--existing-pages": "it needs huge pages set aside at boot; tests/unit/pools/test_existing_pages.py has them",
    "--elastic": "it needs virt-dmem-pages; tests/libvirt/test_elastic.py has it",
    "--backend dmemfs": "it needs memory that was reserved at boot; tests/lab/test_dmemfs_pool.py has it",
}
"""The same, by option."""

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(virt-dmem [^`\n]+)`")


def lines(document: Path) -> list[str]:
    """Return every line of the shell blocks of a document, without sudo."""
    blocks = _BLOCK.findall(document.read_text("utf-8"))
    return [line.replace("sudo ", "") for block in blocks for line in block.splitlines() if line.strip()]


def inline(document: Path) -> list[str]:
    """Return every complete ``virt-dmem`` command in the running text of a document."""
    return [command for command in _INLINE.findall(document.read_text("utf-8")) if "…" not in command]


def examples(page: Path) -> list[str]:
    """Return every command in a manual page's EXAMPLES."""
    section = page.read_text("utf-8").partition(".SH EXAMPLES\n")[2].partition("\n.SH ")[0]
    text = section.replace("\\-", "-").replace("\\(dq", '"')
    return [line for line in text.splitlines() if re.match(r"(virt-dmem|virsh|systemctl) ", line)]


def why_not_run(line: str) -> str:
    """Return the reason why no test runs this line; empty if one does."""
    options = [why for option, why in NOT_RUN_WITH.items() if option in line]
    return NOT_RUN.get(line.split()[0], "") or "".join(options[:1])
