# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables: which columns are shown, and what their cells are."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from virt_dmem.cli.columns import choose, describe, joined, select, size, table, text
from virt_dmem.cli.output import Output
from virt_dmem.errors import UsageError
from virt_dmem.units import GIB

TABLE = table(text("NAME", "name", "its name"), size("SIZE", "size_bytes", "its size"))


def test_columns_are_shown_in_the_order_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "long-name", "size_bytes": 2048}, {"name": "", "size_bytes": None}]
    Output(as_json=False).table(choose(TABLE, "size, name", "NAME"), rows)
    assert capsys.readouterr().out.splitlines() == [" SIZE  NAME", "2 KiB  long-name", "    -  -"]
    Output(as_json=False, in_bytes=True).table(choose(TABLE, None, "SIZE"), rows)
    assert capsys.readouterr().out.split() == ["SIZE", "2048", "-"]


def test_an_unknown_column_is_named_with_those_that_exist() -> None:
    with pytest.raises(UsageError) as error:
        choose(TABLE, "NAME,COLOUR", "NAME")
    assert "'COLOUR'" in error.value.message
    assert "NAME, SIZE" in error.value.hint


def test_the_help_describes_every_column() -> None:
    assert describe(TABLE) == "columns:\n  NAME  its name\n  SIZE  its size"


def test_nothing_joined_is_a_dash() -> None:
    assert (joined([]), joined([0, 1])) == ("-", "0,1")


ROWS = [{"name": "web1", "free": 2 * GIB}, {"name": "web2", "free": None}, {"name": "db", "free": GIB}]
SELECTED = table(text("NAME", "name"), size("FREE", "free"))


def selected(**options: Any) -> list[str]:
    args = argparse.Namespace(**({"filter": [], "sort": None, "reverse": False} | options))
    return [row["name"] for row in select(ROWS, SELECTED, args)]


def test_rows_are_ordered_by_a_column_sizes_by_bytes_and_unknown_ones_first() -> None:
    assert selected() == ["web1", "web2", "db"]
    assert selected(sort="name") == ["db", "web1", "web2"]
    assert selected(sort="free") == ["web2", "db", "web1"]
    assert selected(sort="free", reverse=True) == ["web1", "db", "web2"]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["NAME=web*"], ["web1", "web2"]),
        (["name!=web*"], ["db"]),
        (["FREE>1G"], ["web1"]),
        (["FREE >= 1GiB"], ["web1", "db"]),
        (["FREE<=1073741824"], ["db"]),
        (["FREE!=0", "NAME=d?"], ["db"]),
    ],
)
def test_rows_are_filtered_by_all_conditions(conditions: list[str], names: list[str]) -> None:
    assert selected(filter=conditions) == names


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("web", "'web' is not a condition"),
        ("COLOUR=red", "Unknown column 'COLOUR'"),
        ("NAME>web", "NAME is not a size"),
        ("FREE>much", "'much' is not a size"),
    ],
)
def test_what_is_no_condition_is_refused(condition: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        selected(filter=[condition])


def test_several_columns_to_order_by_are_refused() -> None:
    with pytest.raises(UsageError, match="'NAME,FREE' is not one column"):
        selected(sort="NAME,FREE")
