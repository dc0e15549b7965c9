# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables: which columns are shown, and what their cells are."""

from __future__ import annotations

import pytest

from virt_dmem.cli.columns import choose, describe, joined, size, table, text
from virt_dmem.cli.output import Output
from virt_dmem.errors import UsageError

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
