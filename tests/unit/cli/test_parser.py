# SPDX-License-Identifier: GPL-2.0-or-later
"""The parser: usage errors, and that the parser of one command is the same as that of all."""

from __future__ import annotations

import argparse

import pytest

from virt_dmem.cli import registry
from virt_dmem.cli.main import main
from virt_dmem.cli.parser import build_parser
from virt_dmem.errors import ExitStatus


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["pool"], "VERB"),
        (["pool", "create"], "NAME"),
        (["pool", "create", "p"], "The size of the pool is missing"),
        (["pool", "create", "p", "--size", "much"], "'much' is not a size"),
        (["pool", "create", "p", "--size", "0"], "'0' is not a size"),
        (["pool", "create", "p", "--node", "0"], "'0' is not a node and its size"),
        (["pool", "create", "p", "--node", "0=1G", "--node", "0=1G"], "given twice"),
        (
            ["pool", "create", "p", "--size", "1G", "--node", "0=2G"],
            "--size is 1 GiB, but the nodes add up to 2 GiB",
        ),
        (["pool", "create", "p", "--size", "1G", "--backend", "floppy"], "invalid choice"),
        (["pool", "list", "--output", "NAME,COLOUR"], "Unknown column 'COLOUR'"),
        (["apply", "d", "--print-diff", "--print-xml"], "not allowed with"),
        (["list", "--app"], "Unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_sentence_and_status_2(
    nowhere: str, args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", nowhere, *args]) == ExitStatus.USAGE
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.err.startswith("virt-dmem: ")
    assert len(said.err.splitlines()) == 2


def leaf(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    """The parser of a command's own arguments."""
    for word in words:
        (nested,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = nested.choices[word]
    return parser


@pytest.mark.parametrize("name", registry.MODULES)
def test_the_parser_of_one_command_has_the_same_help_as_that_of_all(name: str) -> None:
    words = name.split()
    alone = leaf(build_parser(registry.named([*words, "--help"])), words)
    assert alone.format_help() == leaf(build_parser(), words).format_help()
