# SPDX-License-Identifier: GPL-2.0-or-later
"""Configure Sphinx: the documents as HTML, from where they are, so that their links hold as they stand.

The source directory is that of the repository. README.md is the first page; which pages follow, and in which order,
is said below, as a reader of the sources has directories for that.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
_REPOSITORY = Path(__file__).parents[2]

project = "virt-dmem"
_code = (_REPOSITORY / "virt_dmem/__init__.py").read_text("utf-8")
version = release = re.findall(r'^__version__ = "(.*)"$', _code, re.MULTILINE)[0]
language = "en"

extensions = ["myst_parser", "man_pages"]
include_patterns = ["*.md", "kernel/README.md", "docs/*.md", "docs/**/*.md", "docs/man/*.[158]"]
exclude_patterns = [".*", "build", "virt_dmem", "tests", "packaging"]
root_doc = "README"
myst_heading_anchors = 4
nitpicky = True
highlight_language = "text"

html_theme = "furo"
html_title = f"virt-dmem {version}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

DECISIONS = "docs/development/decisions/"
CONTENTS = {
    "Guides": ["docs/guide/operations", "docs/guide/xml", "docs/guide/dmemfs", "docs/guide/*"],
    "Reference": ["docs/reference/*", "docs/CHANGELOG"],
    "Manual pages": ["docs/man/virt-dmem", "docs/man/*"],
    "Measurements": ["docs/bench/*"],
    "Development": ["CONTRIBUTING", "docs/development/*", f"{DECISIONS}README", "kernel/README"],
}
"""The pages of the sidebar; ``*`` stands for those of a directory that are not named before."""


def _contents() -> str:
    trees = [
        "\n".join(["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""])
        for caption, pages in CONTENTS.items()
    ]
    return "".join(trees)


def _add_contents(_app: Sphinx, name: str, text: list[str]) -> None:
    if name == root_doc:
        text[0] += _contents()
    elif name == f"{DECISIONS}README":
        text[0] += "\n```{toctree}\n:glob:\n\n[0-9]*\n```\n"
    # where the sources are read, a directory shows its files
    text[0] = text[0].replace("decisions/)", "decisions/README.md)")


def _add_index(app: Sphinx, failed: Exception | None) -> None:
    """Copy the first page to where a web server looks for that of a directory."""
    if not failed and app.builder.format == "html":
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Have Sphinx call what is above."""
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _add_index)
