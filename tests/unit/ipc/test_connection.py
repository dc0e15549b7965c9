# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a caller sends over the control socket, the daemon keeps answering others."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ipc.conftest import INTERFACE, LIST, MIB, Daemon, send
from virt_dmem.daemon.views import ControlInterface
from virt_dmem.ipc.client import Client
from virt_dmem.ipc.connection import CALLS_WAITING, ROOT_MESSAGE_BYTES, Caller, Failed

METHODS = sorted(name for name in vars(ControlInterface) if name[0].isupper())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None), max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


parameter_names = st.sampled_from(["operation", "xml", "domain", "name", "dry_run", "undo", "seconds", "other"])


words = st.sampled_from(
    [
        "prepare",
        "start",
        "release",
        "",
        "../../etc/passwd",
        "<domain",
        "\x00",
        "\ud800",
        "guest",
        "%s%n",
        "x" * 5000,
    ]
)


xmls = st.sampled_from(
    [
        "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/>",
        "<domain><metadata><m:memory xmlns:m='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata></domain>",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/shadow'>]><d>&a;https://virt-dmem.dev/xmlns/domain/1.0</d>",
        "https://virt-dmem.dev/xmlns/domain/1.0 \ud800",
    ]
)


calls = st.fixed_dictionaries(
    {
        "method": st.sampled_from([f"{INTERFACE}.{method}" for method in METHODS])
        | st.text(max_size=20)
        | json_values
    },
    optional={
        "parameters": st.dictionaries(parameter_names, words | xmls | json_values, max_size=3) | json_values,
        "more": st.booleans() | json_values,
        "oneway": st.booleans() | json_values,
        "upgrade": json_values,
    },
)


quickly = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@quickly
@given(data=st.binary(max_size=300) | st.lists(st.binary(max_size=40), max_size=5).map(b"\0".join))
def test_bytes_that_mean_nothing(daemon: Daemon, data: bytes) -> None:
    send(daemon, data, half_close=True)
    daemon.require_answer()


@quickly
@given(call=calls)
def test_calls_of_any_shape_are_answered_or_disconnected(daemon: Daemon, call: dict[str, Any]) -> None:
    heard = send(daemon, json.dumps(call).encode() + b"\0", half_close=True)
    for answer in heard.split(b"\0")[:-1]:
        assert isinstance(json.loads(answer), dict)
        assert b"InternalServerError" not in answer
    daemon.require_answer()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"\0",
        b'{"method":' * 200_000 + b"\0",
        b"9" * 10_000 + b"\0",
        b"\xff\0",
        b'{"method": "\xed\xa0\x80"}\0',
        LIST[:-1] + b"\xff\xfe\0",
        b"\0" * 100_000,
    ],
    ids=["deep list", "deep object", "long number", "no UTF-8", "surrogate", "rest", "empty calls"],
)
def test_what_trips_a_json_parser(daemon: Daemon, data: bytes) -> None:
    assert send(daemon, data, half_close=True) in (b"", b'{"error":"invalid.asyncvarlink.ProtocolViolation"}\0')
    daemon.require_answer()


def test_a_call_without_end_is_cut_off_and_its_memory_freed(daemon: Daemon) -> None:
    before = daemon.rss_bytes()
    with daemon.connect() as caller, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(ROOT_MESSAGE_BYTES // MIB + 2):
            caller.sendall(b"x" * MIB)
    daemon.require_answer()
    assert daemon.rss_bytes() - before < 3 * ROOT_MESSAGE_BYTES


def test_a_large_domain_is_no_attack(daemon: Daemon) -> None:
    xml = f"<domain><!--{'x' * 3 * MIB}--></domain>"
    with Client(daemon.path) as client:
        (answer,) = client.call_more("Hook", operation="release", xml=xml)
    assert answer["reply"]["done"]
    daemon.require_answer()


def test_calls_faster_than_they_are_served_are_cut_off(daemon: Daemon) -> None:
    with daemon.connect() as caller, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(200):
            caller.sendall(LIST * 1000)
    daemon.require_answer()


def test_several_calls_at_once_are_all_answered(daemon: Daemon) -> None:
    assert send(daemon, LIST * CALLS_WAITING, half_close=True).count(b"\0") == CALLS_WAITING


def test_a_caller_that_does_not_read_its_answers_gets_no_more_of_them(daemon: Daemon) -> None:
    before = daemon.rss_bytes()
    with daemon.connect() as caller:
        caller.settimeout(0.3)
        description = json.dumps(
            {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": INTERFACE}}
        )
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):  # the latter on a busy machine
            for _ in range(100_000):
                caller.sendall(description.encode() + b"\0")
                time.sleep(0.0001)
        daemon.require_answer()
        assert daemon.rss_bytes() - before < 8 * MIB


def test_a_slow_caller_holds_nobody_up_and_is_served(daemon: Daemon) -> None:
    def crawl() -> None:
        with daemon.connect() as caller:
            for byte in LIST:
                caller.sendall(bytes([byte]))
                time.sleep(0.01)
            heard.append(caller.recv(4096))

    heard: list[bytes] = []
    crawling = [threading.Thread(target=crawl) for _ in range(20)]
    for thread in crawling:
        thread.start()
    while any(thread.is_alive() for thread in crawling):
        daemon.require_answer()
    assert [json.loads(answer.rstrip(b"\0")) for answer in heard] == [{"parameters": {"pools": []}}] * 20


def test_a_caller_may_disconnect_in_the_middle_of_a_call_or_before_its_answer(daemon: Daemon) -> None:
    for _ in range(50):
        with daemon.connect() as caller:
            caller.sendall(LIST[:10])
        with daemon.connect() as caller:
            caller.sendall(LIST)
    daemon.require_answer()


def test_file_descriptors_that_are_passed_are_closed(daemon: Daemon) -> None:
    daemon.require_answer()
    before = daemon.open_files()
    for data in (LIST, b"x", b"\0"):
        with daemon.connect() as caller:
            socket.send_fds(caller, [data], [0] * 200)
    daemon.require_answer()
    for _ in range(300):  # the last connections are closed after the answer to another
        if daemon.open_files() <= before + 2:
            return
        time.sleep(0.1)
    assert daemon.open_files() <= before + 2


def test_a_system_call_that_failed_is_told_to_the_caller_with_the_file_and_the_remedy() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
    with pytest.raises(Failed) as caught:
        Caller.__new__(Caller).handle_call_exception(error, oneway=False)
    sent = msgspec.to_builtins(caught.value.parameters, enc_hook=vars)
    assert (sent["code"], sent["message"]) == ("failed", "No space left on device: /a/b.")
    assert "Free space there" in sent["hint"]
