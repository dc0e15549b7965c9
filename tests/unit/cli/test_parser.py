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
        ([], "No command is given"),
        (["frobnicate"], "There is no command 'frobnicate'"),
        (["pool"], "No command is given"),
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


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["shwo", "guest"], "Did you mean 'show'? See 'virt-dmem --help'."),
        (["pool", "lst"], "Did you mean 'list'? See 'virt-dmem pool --help'."),
        (["list", "--aplied"], "Did you mean '--applied'? See 'virt-dmem list --help'."),
        (["pool", "create", "p", "--size", "1G", "--backend", "tmpf"], "Did you mean 'tmpfs'? It can be"),
        (["pool", "list", "-o", "name,fre"], "Did you mean 'FREE'? Available columns:"),
        (["explain", "pool-bussy"], "Did you mean 'pool-busy'? The codes are:"),
        (["show", "-weird"], "goes behind '--': virt-dmem show -- -weird. See"),
        (["detach", "guest", "-weird"], "goes behind '--': virt-dmem detach -- -weird. See"),
        (["show", "--", "-weird", "--timing"], "Options go before '--': virt-dmem show --timing -- …. See"),
        (["pool"], "It can be create, resize, destroy, list, show, mount, drain. See 'virt-dmem pool --help'."),
        (["rewrite", "guest.xml"], "Run: virt-dmem rewrite < guest.xml > NEW; see 'virt-dmem rewrite --help'."),
    ],
)
def test_what_was_probably_meant_is_said(
    nowhere: str, args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", nowhere, *args]) == ExitStatus.USAGE
    assert hint in capsys.readouterr().err


def test_no_pool_has_a_name_that_begins_with_a_hyphen(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", nowhere, "pool", "show", "-weird"]) == ExitStatus.USAGE
    assert "goes behind" not in capsys.readouterr().err


def test_behind_two_hyphens_all_are_names(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_parser().parse_args(["show", "--timing", "--", "-weird"]).domain == "-weird"
    main(["explain", "--config", nowhere, "--", "--json"])
    said = capsys.readouterr()
    assert (said.out, said.err[:31]) == ("", "virt-dmem: There is no code '--")
