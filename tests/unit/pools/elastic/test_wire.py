# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for huge pages, and lines that are none."""

from __future__ import annotations

import pytest

from virt_dmem.pools.elastic.wire import GiveBack, Take, encode, read_request


@pytest.mark.parametrize("request_", [Take("p", {0: 1, 7: 2 << 40}), GiveBack("p+1")])
def test_a_request_is_read_as_it_was_written(request_: Take | GiveBack) -> None:
    line = encode(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert read_request(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"type":"take"}',
        b'{"type":"take","pool":"p","nodes":{}}',
        b'{"type":"take","pool":"p","nodes":{"0":0}}',
        b'{"type":"take","pool":"p","nodes":{"0":-1}}',
        b'{"type":"take","pool":"p","nodes":{"-1":1}}',
        b'{"type":"take","pool":"p","nodes":{"1024":1}}',
        b'{"type":"take","pool":"p","nodes":{"0":1.5}}',
        b'{"type":"take","pool":"p","nodes":{"0":9223372036854775808}}',
        b'{"type":"take","pool":"p","nodes":{"0":1},"max":1}',
        b'{"type":"take","pool":"' + b"x" * 101 + b'","nodes":{"0":1}}',
        b'{"type":"give-back","segment":1}',
        b'{"type":"destroy","segment":"p"}',
        b'{"type":"done","segment":"p"}',
    ],
)
def test_anything_else_is_no_request(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_request(line)
