# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow every link, path and manual page that is named in what is installed: each leads to what is installed."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from tests.rig.repository import REPOSITORY

MOVED = runpy.run_path(str(REPOSITORY / "docs/installed.py"))["moved"]
DOCUMENTATION = "usr/share/doc/virt-dmem"
MADE_LATER = {
    "/etc/apt/sources.list.d/virt-dmem.sources": "the README has it copied there",
    "/etc/default/grub.d/virt-dmem.cfg": "plan-host --write-grub",
    "/etc/virt-dmem/conf.d/*.toml": "the administrator's",
    "/etc/virt-dmem/templates/*": "the administrator's",
    "/run/virt-dmem*": "virt-dmemd, or systemd-tmpfiles for it",
    "/usr/share/cockpit/virt-dmem": "the package of the page, or make cockpit-install from a checkout",
    "/usr/src/virt-dmem-*": "the package of the module",
    "/var/lib/dkms/virt-dmem": "dkms",
    "/var/lib/prometheus/node-exporter/virt_dmem.prom": "virt-dmemd, in a directory of the exporter",
    "/var/lib/virt-dmem*": "virt-dmemd",
    "/var/log/virt-dmem-module.log": "integrate, when the module does not build",
}
"""Paths that are not there after installation, and who makes them."""
OF_THE_SOURCES = re.compile(
    r"(?<![\w/.-])(?:bench|docs|hooks(?!/qemu\.d)|kernel|packaging|systemd|tests|tools|virt_dmem|xml-templates)/[\w./*-]*\w"
)
PATH = re.compile(r"(?<![\w/.}\-])/(?:boot|etc|lib|opt|run|srv|usr|var)/[\w./@*-]*[\w*]")
MANUAL_PAGE = re.compile(r"\b(virt-dmemd?(?:[.-]\w+)*)\((\d)\)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all packages have."""
    root = tmp_path_factory.mktemp("stage")
    for package in ("product", "module"):
        subprocess.run(
            [REPOSITORY / "packaging/stage.sh", package], check=True, capture_output=True,
            env=os.environ | {"DESTDIR": str(root), "PYTHON": sys.executable},
        )  # fmt: skip
    config = root / "etc/virt-dmem/virt-dmem.toml"  # each kind of package has its own way with it
    config.write_text((root / DOCUMENTATION / "virt-dmem.toml").read_text())
    hook = root / "etc/libvirt/hooks/qemu.d/50-virt-dmem"  # as 'integrate connect' does
    hook.parent.mkdir(parents=True)
    hook.touch()
    return root


def documents(staged: Path) -> dict[str, str]:
    """Return the text of all installed documents, by path."""
    return {
        str(path.relative_to(staged)): path.read_text("utf-8")
        for path in sorted((staged / DOCUMENTATION).rglob("*"))
        if path.suffix in {".md", ".toml", ".yml", ".rng", ".xsl"}
    }


def manual_pages(staged: Path) -> dict[str, str]:
    """Return the text of all manual pages without escapes and fonts, by path."""
    found = {}
    for path in sorted((staged / "usr/share/man").rglob("*.[1-8]")):
        text = re.sub(r"\\f[A-Z]|\\&|\\c", "", path.read_text("utf-8")).replace("\\-", "-")
        text = re.sub(r"^\.[BI]R? ([\w.-]+) \((\d)\)", r"\1(\2)", text, flags=re.MULTILINE)
        found[str(path.relative_to(staged))] = text
    return found


def said_by_the_program() -> Iterator[tuple[str, str]]:
    """Yield every text in the code that is no docstring, with its module."""
    for path in sorted((REPOSITORY / "virt_dmem").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        explained = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explained:
                yield str(path.relative_to(REPOSITORY)), node.value


def everything(staged: Path) -> list[tuple[str, str]]:
    """Return all texts that an operator may read, with where they are."""
    others = [*(staged / "usr/lib/systemd/system").iterdir(), *REPOSITORY.glob("packaging/debian/*.README.Debian")]
    scripts = [staged / "usr/lib/virt-dmem/integrate", staged / "usr/lib/virt-dmem/module"]
    return [
        *documents(staged).items(),
        *manual_pages(staged).items(),
        *((path.name, path.read_text("utf-8")) for path in others),
        *((path.name, "\n".join(re.findall("(?:echo|say) .*", path.read_text("utf-8")))) for path in scripts),
        *said_by_the_program(),
    ]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_link_in_a_document_leads_to_an_installed_one_with_its_anchor(staged: Path) -> None:
    for name, text in documents(staged).items():
        for target, anchor in LINK.findall(text):
            if not target.startswith("https://"):
                path = (staged / name).parent / target if target else staged / name
                assert path.exists(), f"{name}: {target}"
                assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{name}: {target}#{anchor}"


def test_a_document_says_of_a_file_that_is_in_the_sources_only_that_it_is(staged: Path) -> None:
    for name, text in documents(staged).items():
        named = OF_THE_SOURCES.findall(LINK.sub("", text))
        named = [path for path in named if not (staged / DOCUMENTATION / path).exists()]
        assert not named or "in the sources" in " ".join(text.split()), f"{name}: {named}"


def test_a_manual_page_and_the_program_name_no_file_of_the_sources(staged: Path) -> None:
    texts = [*manual_pages(staged).items(), *said_by_the_program()]
    found = {f"{name}: {path}" for name, text in texts for path in OF_THE_SOURCES.findall(text)}
    assert found == set()


def test_a_path_of_ours_that_is_named_is_there_after_installation(staged: Path) -> None:
    missing = {
        f"{name}: {path}"
        for name, text in everything(staged)
        for path in PATH.findall(text)
        if re.search("virt[-_]dmem", path)
        and not any(PurePath(path).match(pattern) or path.startswith(pattern.rstrip("*")) for pattern in MADE_LATER)
        and not [*staged.glob(path[1:])]
    }
    assert missing == set()


def test_a_path_that_is_made_later_is_named_somewhere(staged: Path) -> None:
    texts = "\n".join(text for _, text in everything(staged))
    assert [path for path in MADE_LATER if path.partition("*")[0] not in texts] == []


def test_a_manual_page_of_ours_that_is_named_is_installed(staged: Path) -> None:
    named = {page for _, text in everything(staged) for page in MANUAL_PAGE.findall(text)}
    assert len(named) >= 4
    missing = [page for page in named if not (staged / f"usr/share/man/man{page[1]}/{page[0]}.{page[1]}").exists()]
    assert missing == []


def test_a_link_is_led_anew_dropped_or_left_as_its_kind_asks() -> None:
    to = {"README.md": "README.md", "docs/guide/a.md": "guide/a.md", "docs/guide/b.md": "guide/b.md"}
    text = (
        "[a](docs/guide/a.md#x) ![b](docs/guide/b.md) [`[c]`](docs/man/virt-dmem.toml.5) [w](docs/man/virt-dmem.1)"
        " [no](LICENSE) [far](https://example.org/x) [here](#y)"
    )
    assert MOVED(text, "README.md", to) == (
        "[a](guide/a.md#x) ![b](guide/b.md) `[c]` of virt-dmem.toml(5) w of virt-dmem(1)"
        " no [far](https://example.org/x) [here](#y)"
    )
    assert MOVED("[b](b.md) [up](../../README.md#z)", "docs/guide/a.md", to) == "[b](b.md) [up](../README.md#z)"


def test_what_is_for_readers_of_the_sources_is_left_out_and_comments_are() -> None:
    text = "a\n\n<!-- in the sources only -->\nb\n<!-- again everywhere -->\n\nc\n\n<!-- made by x -->\n\nd\n"
    assert MOVED(text, "README.md", {"README.md": "README.md"}) == "a\n\nc\n\nd\n"
