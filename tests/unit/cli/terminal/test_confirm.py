# SPDX-License-Identifier: GPL-2.0-or-later
"""A question is asked on a terminal only, and anything but yes changes nothing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from virt_dmem.cli.terminal.confirm import confirm
from virt_dmem.errors import Cancelled


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that makes a terminal of stdin and stderr, and types there."""
    ours, theirs = os.openpty()

    def typing(text: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.FileIO(os.dup(theirs))))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO(os.dup(theirs), "w"), write_through=True))
        os.write(ours, text)

    yield typing
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize("answer", [b"y\n", b"YES\n", b" yes \n"])
def test_yes_goes_on(typed: Any, answer: bytes) -> None:
    typed(answer)
    confirm(SimpleNamespace(yes=False), "Destroy it?")  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [b"\n", b"n\n", b"yesterday\n", b"\x04"])
def test_anything_else_changes_nothing(typed: Any, answer: bytes) -> None:
    typed(answer)
    with pytest.raises(Cancelled, match="nothing was changed"):
        confirm(SimpleNamespace(yes=False), "Destroy it?")  # type: ignore[arg-type]


def test_with_yes_nothing_is_asked(typed: Any) -> None:
    typed(b"n\n")
    confirm(SimpleNamespace(yes=True), "Destroy it?")  # type: ignore[arg-type]


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    confirm(SimpleNamespace(yes=False), "Destroy it?")  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_a_closed_stream_is_no_terminal(typed: Any, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    typed(b"n\n")
    monkeypatch.setattr(sys, stream, None)  # as Python has it after <&-
    confirm(SimpleNamespace(yes=False), "Destroy it?")  # type: ignore[arg-type]
