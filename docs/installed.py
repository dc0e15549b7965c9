# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the documents of an installation to a directory: ``python3 docs/installed.py DIRECTORY``.

Those for operators, ordered as in ``docs/``, with links that lead from where they come to be to where others do.
A link to what is not installed becomes its words, one to a manual page that page's name. What lies between
``<!-- in the sources only -->`` and ``<!-- again everywhere -->`` is left out, and so are all other comments.

For the installer and all packages; imports the standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from os.path import relpath
from pathlib import Path
from posixpath import normpath

__all__ = ["documents", "main", "moved", "places"]

REPOSITORY = Path(__file__).resolve().parents[1]
PLACES = {
    "README.md": "",
    "docs/CHANGELOG.md": "",
    "docs/guide/*.md": "guide",
    "docs/guide/cockpit/*.png": "guide/cockpit",
    "docs/reference/*": "reference",
    "docs/bench/results.md": "bench",
    "docs/bench/*.svg": "bench",
    "docs/development/hvo-report.md": "guide",
    "hooks/cloudstack/*.sh": "hooks/cloudstack",
    "hooks/kubevirt/*.py": "hooks/kubevirt",
    "hooks/kubevirt/*.yaml": "hooks/kubevirt",
    "hooks/vdsm/50_virt_dmem": "hooks/vdsm",
    "xml-templates/request.xsl": "guide",
}
"""What is installed, and the directory that it comes to."""
RENAMED = {"kernel/README.md": "reference/dmemfs.md"}

_COMMENT = re.compile(
    r"<!-- in the sources only -->.*?<!-- again everywhere -->\n*|^<!-- .*? -->\n+", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"\[(?P<words>(?:`[^`]*`|[^\[\]`])*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_MANUAL_PAGE = re.compile(r"docs/man/(?P<name>[\w.-]+)\.(?P<section>[1-8])")


def places() -> dict[str, str]:
    """Return where each installed document comes to, by its path in the repository."""
    found = {
        str(path.relative_to(REPOSITORY)): f"{directory}/{path.name}".lstrip("/")
        for pattern, directory in PLACES.items()
        for path in sorted(REPOSITORY.glob(pattern))
    }
    return found | RENAMED


def moved(text: str, source: str, to: Mapping[str, str]) -> str:
    """Return a document of ``source`` as it is installed, with links that hold there; ``to``: see ``places``."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match["words"], match["target"], match["anchor"] or ""
        if not target or target.startswith("https://"):
            return match[0]
        file = normpath(f"{Path(source).parent}/{target}")
        if file in to:
            return f"[{words}]({relpath(to[file], Path(to[source]).parent)}{anchor})"
        if page := _MANUAL_PAGE.fullmatch(file):
            name = f"{page['name']}({page['section']})"
            return words if words == name else f"{words} of {name}"
        return words

    return _LINK.sub(link, _COMMENT.sub("", text))


def documents() -> dict[str, bytes]:
    """Return all installed documents, by their path below the directory of documentation."""
    to = places()
    found = {}
    for source, place in to.items():
        content = (REPOSITORY / source).read_bytes()
        found[place] = moved(content.decode(), source, to).encode() if place.endswith(".md") else content
    return found


def main() -> int:
    """Write them below the directory that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python3 docs/installed.py DIRECTORY", file=sys.stderr)
        return 2
    for place, content in documents().items():
        path = Path(sys.argv[1]) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
