# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that several commands take."""

from __future__ import annotations

import argparse

import pytest

from virt_dmem.cli.arguments import add_sizes, number, size_or_zero, sizes
from virt_dmem.errors import UsageError
from virt_dmem.units import GIB


def parsed(*args: str) -> int | dict[int, int] | None:
    parser = argparse.ArgumentParser()
    add_sizes(parser, "")
    return sizes(parser.parse_args(args))


def test_a_size_is_given_in_all_by_node_or_not_at_all() -> None:
    assert parsed() is None
    assert parsed("--size", "1G") == GIB
    assert parsed("--node", "0=1G", "--node", "1=0") == {0: GIB, 1: 0}
    assert parsed("--size", "1G", "--node", "0=1G") == {0: GIB}


@pytest.mark.parametrize("text", ["", "-1", "a", "0.5", "0x1"])
def test_what_is_no_number_is_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        number(text)


def test_a_size_may_be_zero_where_it_is_allowed() -> None:
    assert (size_or_zero("0"), size_or_zero("2G"), number("7")) == (0, 2 * GIB, 7)
