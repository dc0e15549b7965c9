# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the documents: shown commands exist, manual pages have every option, links resolve."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.rig.command_line import error_codes
from tests.rig.documents import DOCUMENTS, MANUAL_PAGES, NOT_RUN, examples, inline, lines
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.parser import build_parser
from virt_dmem.config.schema import AdoptRule, keys
from virt_dmem.errors import ExitStatus
from virt_dmem.monitoring.checks.suite import CHECKS

GENERATE = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "docs/generate.py")))
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
LINKING = [*DOCUMENTS, REPOSITORY / "kernel/README.md"]
OTHERS = {"ansible-playbook", "apt", "cp", "virsh", "journalctl"}


def shown_commands() -> list[tuple[str, str]]:
    """Return every shown command, those of a pipe one by one."""
    shown = [(path.name, line) for path in DOCUMENTS for line in (*lines(path), *inline(path))]
    shown += [(page.name, line) for page in MANUAL_PAGES for line in examples(page)]
    return [(name, part.strip()) for name, line in dict.fromkeys(shown) for part in line.split(" | ")]


def make_targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every verb with its parser, such as ``pool create``; the command itself is the empty name."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested or not prefix:
        yield prefix, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from verbs(child, f"{prefix} {name}".strip())


def spoken(page: Path) -> str:
    """Return the text of a manual page without its macros and escapes."""
    lines = [line for line in page.read_text("utf-8").splitlines() if not line.startswith('.\\"')]
    text = "\n".join(re.sub(r"^\.[A-Z]+ ", "", line) for line in lines).replace("\\-", "-")
    return re.sub(r"\\f[A-Z]|\"", "", text)


def test_the_documents_have_commands_at_all() -> None:
    assert len(shown_commands()) > 80
    assert {path.name for path in DOCUMENTS if lines(path)} >= {"README.md", "operations.md", "alerts.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_commands_is_seen_by_the_tests(document: Path) -> None:
    fences = re.findall(r"^```(.*)$", document.read_text("utf-8"), re.MULTILINE)
    assert set(fences) <= {"", "sh", "xml", "toml", "yaml", "console"}


def test_what_is_not_run_is_shown_somewhere_and_has_a_reason() -> None:
    first_words = {line.split()[0] for path in DOCUMENTS for line in lines(path)}
    assert set(NOT_RUN) <= first_words
    assert all(NOT_RUN.values())


@pytest.mark.parametrize(("document", "command"), shown_commands(), ids=lambda value: value)
def test_a_command_that_is_shown_exists(document: str, command: str) -> None:
    words = shlex.split(re.split(r" [<>] ?", command)[0])
    match words[0]:
        case "virt-dmem":
            known = dict(verbs(build_parser()))
            verb = " ".join(itertools.takewhile(lambda word: re.fullmatch("[a-z-]+", word), words[1:3]))
            if len(words) <= 3 and verb in known and words[1:] == verb.split():
                return  # the name of a command, without its arguments
            placeholders = {"SIZE": "1G", "N": "0", "TIME": "1h"}
            assert build_parser().parse_args([placeholders.get(word, word) for word in words[1:]]).command
        case "make":
            assert set(words[1:]) <= make_targets()
        case "systemctl":
            assert words[1] in {"enable", "start", "status", "try-reload-or-restart"}
            for unit in words[2:]:
                ours = re.sub("@.*\\.", "@.", unit)
                assert unit == "libvirtd" or (REPOSITORY / "systemd" / ours).exists(), unit
        case other:
            assert other in OTHERS


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKING, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_relative_link_resolves_with_its_anchor(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("document", LINKING, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_or_module_that_is_named_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    for path in re.findall(
        r"(?<![\w/.])((?:tests|virt_dmem|bench|tools|packaging|systemd|docs)/[\w./*-]*\w)", text
    ):
        assert [*REPOSITORY.glob(path), *document.parent.glob(path)], path
    packages = "|".join(path.parent.name for path in (REPOSITORY / "virt_dmem").glob("*/__init__.py"))
    named = re.findall(rf"`((?:{packages})(?:\.\w+)+)`", text)
    for name in set(named) - {key for key, _, _ in keys()}:
        module = (REPOSITORY / "virt_dmem").joinpath(*name.split("."))
        assert module.is_dir() or module.with_suffix(".py").exists(), name


def test_no_document_is_left_beside_guide_reference_and_development() -> None:
    found = {path.name for path in (REPOSITORY / "docs").iterdir() if not path.name.startswith("__")}
    programs = {"generate.py", "html", "installed.py"}
    assert found - programs == {"CHANGELOG.md", "bench", "development", "guide", "man", "reference"}


def test_what_is_made_from_the_code_is_current() -> None:
    for path, text in GENERATE.documents().items():
        assert (REPOSITORY / "docs" / path).read_text("utf-8") == text, f"{path}: run python docs/generate.py"


def test_there_is_a_manual_page_for_the_command_each_group_the_daemon_and_the_configuration() -> None:
    groups = {verb.partition(" ")[0] for verb, _ in verbs(build_parser()) if " " in verb}
    assert {page.name for page in MANUAL_PAGES} == {
        "virt-dmem.1",
        *(f"virt-dmem-{group}.1" for group in groups),
        "virt-dmemd.8",
        "virt-dmem.toml.5",
    }


@pytest.mark.parametrize("page", MANUAL_PAGES, ids=lambda page: page.name)
def test_man_finds_no_fault_with_a_page(page: Path) -> None:
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100"}
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, env=env, text=True, check=True
    )
    assert done.stderr == ""
    assert "@" not in re.sub(r"pool@", "", done.stdout)


@pytest.mark.parametrize("page", ["virt-dmem.1", "virt-dmem-pool.1", "virt-dmemd.8"])
def test_a_page_says_how_it_works(page: str) -> None:
    assert "THEORY OF OPERATION" in spoken(REPOSITORY / "docs/man" / page)


def test_the_manual_pages_know_every_verb_and_option() -> None:
    everywhere = set(build_parser()._option_string_actions)
    for verb, parser in verbs(build_parser()):
        group, nested, _ = verb.partition(" ")
        page = spoken(REPOSITORY / f"docs/man/virt-dmem{f'-{group}' if nested else ''}.1")
        _, found, section = page.partition(f"\n.SS {verb}\n".replace(".SS ", "")) if verb else ("", "\n", page)
        assert found, f"{verb} is missing"
        for action in parser._actions:
            options = set(action.option_strings) - (everywhere if verb else set())
            assert all(option in section for option in options), f"{verb} {action.option_strings}"


def test_the_manual_page_knows_every_exit_status() -> None:
    page = spoken(REPOSITORY / "docs/man/virt-dmem.1").partition("EXIT STATUS")[2]
    assert all(re.search(rf"^{status.value}$", page, re.MULTILINE) for status in ExitStatus)


def test_the_manual_page_of_the_configuration_knows_every_key() -> None:
    page = spoken(REPOSITORY / "docs/man/virt-dmem.toml.5")
    rules = [f"[adopt].{name}" for name in AdoptRule.__struct_fields__]
    for key in [*rules, *(key for key, _, _ in keys() if key != "adopt")]:
        section, _, name = key.rpartition(".")
        below = page.partition(f"\n[{section}]\n")[2] if section else page
        assert re.search(rf"^{name}$", below.partition("\n[")[0], re.MULTILINE), key


@pytest.mark.parametrize("code", error_codes())
def test_every_error_has_its_place_in_the_documents(code: str) -> None:
    assert f"\n| `{code}` | " in (REPOSITORY / "docs/reference/errors.md").read_text("utf-8")


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)


def test_a_manual_page_that_a_unit_names_exists() -> None:
    named = {
        match
        for unit in (REPOSITORY / "systemd").iterdir()
        for match in re.findall(r"man:([\w.-]+)\((\d)\)", unit.read_text("utf-8"))
    }
    assert named
    assert {page for page, section in named if not (REPOSITORY / f"docs/man/{page}.{section}").exists()} == set()
