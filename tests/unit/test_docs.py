# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents tell people to type exists; manual pages know every option; links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from virt_dmem.checks import CHECKS
from virt_dmem.cli.parser import build_parser
from virt_dmem.config import Config
from virt_dmem.errors import ExitStatus

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")])
SHELL_BLOCK = re.compile(r"^```sh( operator)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
OTHERS = {"virsh", "systemctl", "journalctl"}


def commands(document: Path) -> Iterator[str]:
    """Every line of the shell blocks of a document, those of a pipe one by one, without sudo."""
    for _, block in SHELL_BLOCK.findall(document.read_text("utf-8")):
        for line in block.splitlines():
            yield from (part.strip().removeprefix("sudo ") for part in line.split("|"))


def shown_commands() -> list[tuple[str, str]]:
    return [(path.name, command) for path in DOCUMENTS for command in commands(path)]


def make_targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb with its parser, such as ``pool create``; the whole command itself is the empty name."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested or not prefix:
        yield prefix, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from verbs(child, f"{prefix} {name}".strip())


def spoken(page: Path) -> str:
    """The text of a manual page without its macros and escapes."""
    lines = [line for line in page.read_text("utf-8").splitlines() if not line.startswith('.\\"')]
    text = "\n".join(re.sub(r"^\.[A-Z]+ ", "", line) for line in lines).replace("\\-", "-")
    return re.sub(r"\\f[A-Z]|\"", "", text)


def test_the_documents_have_commands_at_all() -> None:
    assert len(shown_commands()) > 15
    assert re.search(r"^```sh operator$", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("document", "command"), shown_commands(), ids=lambda value: value)
def test_a_command_that_is_shown_exists(document: str, command: str) -> None:
    words = shlex.split(re.split(r" [<>] ", command)[0])
    match words[0]:
        case "virt-dmem":
            assert build_parser().parse_args(words[1:]).handler
        case "make":
            assert set(words[1:]) <= make_targets()
        case other:
            assert other in OTHERS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text("utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_manual_page_knows_every_verb_and_option() -> None:
    page = spoken(REPOSITORY / "docs/man/virt-dmem.1")
    begins = {}
    for verb, _ in verbs(build_parser()):
        heading = re.search(rf"^{verb}( .*)?$", page[page.index("COMMANDS") :], re.MULTILINE) if verb else None
        assert heading or not verb, f"{verb} is missing"
        begins[verb] = heading.start() + page.index("COMMANDS") if heading else 0
    everywhere = set(build_parser()._option_string_actions)
    for verb, parser in verbs(build_parser()):
        end = min((at for at in begins.values() if at > begins[verb]), default=len(page))
        section = page if not verb else page[begins[verb] : end]
        for action in parser._actions:
            options = action.option_strings if not verb else set(action.option_strings) - everywhere
            assert not options or any(option in section for option in options), f"{verb} {action.option_strings}"


def test_the_manual_page_knows_every_exit_status() -> None:
    page = spoken(REPOSITORY / "docs/man/virt-dmem.1").partition("EXIT STATUS")[2]
    assert all(re.search(rf"^{status.value}$", page, re.MULTILINE) for status in ExitStatus)


def test_the_manual_page_of_the_daemon_knows_every_key_of_the_configuration() -> None:
    page = spoken(REPOSITORY / "docs/man/virt-dmemd.8")
    for key, value in msgspec.to_builtins(Config()).items():
        names = [f"[{key}]", *value] if isinstance(value, dict) else [key]
        assert all(re.search(rf"^{re.escape(name)}$", page, re.MULTILINE) for name in names), names


def test_every_handler_exists() -> None:
    for verb, parser in verbs(build_parser()):
        if handler := parser.get_default("handler"):
            module, _, function = handler.partition(":")
            assert hasattr(__import__(f"virt_dmem.cli.{module}", fromlist=[function]), function), verb


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
