# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the Cockpit page against virt-dmem itself, without node: its manifest, its commands, the keys it reads.

``make cockpit`` checks the rest: its types, its style and its logic.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.rig.answers import require_documented
from tests.rig.repository import REPOSITORY
from virt_dmem.cli import registry
from virt_dmem.cli.parser import build_parser

PAGE = REPOSITORY / "packaging/cockpit"
SOURCES = sorted(path for path in (PAGE / "src").rglob("*.ts*") if path.name != "answers.ts")
SHOWN = [path for path in SOURCES if path.parent.name != "test"]
HOSTILE = "--force '\"; $(reboot)\u202e"
"""The same as in src/test/commands.test.ts."""
NOT_OURS = {"exit_status"}
"""Keys with an underscore that are Cockpit's."""


def example_commands() -> list[list[str]]:
    examples: dict[str, list[list[str]]] = json.loads((PAGE / "src/test/commands.json").read_text("utf-8"))
    return [argv for calls in examples.values() for argv in calls]


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def test_the_manifest_puts_the_page_into_cockpits_menu() -> None:
    manifest = json.loads(text_of(PAGE / "src/manifest.json"))
    assert set(manifest) == {"requires", "menu"}
    assert manifest["menu"]["index"]["label"]
    assert re.fullmatch(r"\d+", manifest["requires"]["cockpit"])
    assert (PAGE / "src/index.html").exists(), "an entry 'index' opens index.html"


def test_the_page_has_no_script_or_style_in_its_html_as_cockpit_forbids_them() -> None:
    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            assert tag != "style"
            assert tag != "script" or given.get("src")
            assert not [name for name in given if name.startswith("on") or name == "style"]

    Reader().feed(text_of(PAGE / "src/index.html"))


@pytest.mark.parametrize("argv", example_commands(), ids=lambda argv: " ".join(argv[1:4]))
def test_virt_dmems_own_parser_reads_each_command_of_the_page(argv: list[str]) -> None:
    program, *words = argv
    assert program == "virt-dmem"
    parsed = vars(build_parser(registry.named(words)).parse_args(words))
    assert parsed["json"]
    if HOSTILE in argv:
        assert argv.index("--") < argv.index(HOSTILE)
        assert HOSTILE in {parsed.get(name) for name in ("name", "domain", "code")}
        assert not parsed.get("force")
    if f"--pool={HOSTILE}" in argv:
        assert parsed["pool"] == HOSTILE


def test_each_command_of_the_page_is_among_those_examples() -> None:
    exported = re.findall(r"^export const (\w+) = \(", text_of(PAGE / "src/model/commands.ts"), re.MULTILINE)
    assert exported
    assert set(json.loads(text_of(PAGE / "src/test/commands.json"))) == set(exported)


def test_each_key_that_the_page_reads_is_in_the_published_schema() -> None:
    schema: dict[str, Any] = json.loads(text_of(REPOSITORY / "docs/reference/virt-dmem.schema.json"))
    known = {key for kind in schema["$defs"].values() for key in kind["properties"]}
    read = {key for path in SHOWN for key in re.findall(r"\b([a-z]+(?:_[a-z]+)+)\b", text_of(path))}
    assert read - known <= NOT_OURS
    assert len(read & known) > 10


def test_the_types_of_the_page_are_made_from_the_schema_and_the_parser() -> None:
    documents = runpy.run_path(str(REPOSITORY / "docs/generate.py"))["documents"]()
    (made,) = [text for path, text in documents.items() if path.name == "answers.ts"]
    assert text_of(PAGE / "src/model/answers.ts") == made
    assert all(f'    "{name}": {{' in made for name in registry.MODULES)


def test_only_one_module_has_cockpit_run_something_and_no_shell() -> None:
    assert [path.name for path in SHOWN if "cockpit.spawn" in text_of(path)] == ["run.ts"]
    for path in SHOWN:
        assert not re.search(r"cockpit\.(script|file|http|dbus)|\bsh\b.*-c\b", text_of(path)), path


def test_foreign_text_is_only_ever_shown_as_text() -> None:
    forbidden = (
        r"dangerouslySetInnerHTML|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    )
    for path in SHOWN:
        assert not re.search(forbidden, text_of(path)), path


def test_each_source_of_the_page_names_its_license() -> None:
    files = [*SOURCES, *PAGE.glob("*.mjs"), PAGE / "src/style.css", PAGE / "src/index.html"]
    assert [path for path in files if "SPDX-License-Identifier: GPL-2.0-or-later" not in text_of(path)[:200]] == []


def test_what_the_page_is_built_from_is_pinned_and_names_no_registry() -> None:
    lock = json.loads(text_of(PAGE / "package-lock.json"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all(package.get("integrity") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
    direct = json.loads(text_of(PAGE / "package.json"))
    assert all(re.fullmatch(r"[\d.]+", version) for version in direct["dependencies"].values())


def test_the_page_is_installed_beside_those_of_others_and_removed_alone(tmp_path: Path) -> None:
    project, host = tmp_path / "project", tmp_path / "host"
    script = project / "packaging/cockpit.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "packaging/cockpit.sh", script)

    def run(verb: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"DESTDIR": str(host), "PREFIX": "/usr"}
        return subprocess.run([script, verb], env=env, capture_output=True, text=True, check=False)

    assert "run 'make cockpit' first" in run("install").stderr
    assert not host.exists()
    built = project / "build/cockpit"
    built.mkdir(parents=True)
    for name in ("index.js", "index.html", "manifest.json"):
        (built / name).write_text(name)
    other = host / "usr/share/cockpit/machines/manifest.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    assert run("install").returncode == 0
    assert {path.name for path in (host / "usr/share/cockpit/virt-dmem").iterdir()} == {
        path.name for path in built.iterdir()
    }
    assert run("uninstall").returncode == 0
    assert [path for path in host.rglob("*") if path.is_file()] == [other]


def test_the_guide_shows_each_picture_of_the_page_and_all_are_small() -> None:
    guide = REPOSITORY / "docs/guide"
    pictures = sorted(guide.glob("cockpit/*.png"))
    assert pictures
    shown = re.findall(r"!\[[^\]]+\]\((cockpit/[^)]+)\)", text_of(guide / "cockpit.md"))
    assert sorted(shown) == [str(path.relative_to(guide)) for path in pictures]
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


def test_the_stand_in_for_a_host_with_several_nodes_answers_as_virt_dmem_does() -> None:
    """It is what ``tests/lab/cockpit/several_nodes.py`` shows."""
    answers = json.loads(text_of(REPOSITORY / "tests/lab/cockpit/several_nodes.json"))
    for line, answer in answers.items():
        require_documented(line.split()[1:], json.dumps(answer))
    for pool in answers["virt-dmem pool list --json"]["pools"]:
        for size in ("capacity_bytes", "reserved_bytes", "free_bytes", "ready_bytes"):
            assert pool[size] == sum(node[size] for node in pool["nodes"])
        held = [
            extent["size_bytes"]
            for domain in answers["virt-dmem list --json"]["domains"]
            for extent in domain["extents"]
            if extent["pool"] == pool["name"]
        ]
        assert sum(held) == pool["reserved_bytes"]
