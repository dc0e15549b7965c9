# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that cannot connect, or get no reply, are told what to do."""

from __future__ import annotations

import grp
import json
import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from virt_dmem.errors import DaemonUnreachable
from virt_dmem.ipc.client import Client


def test_other_users_are_connected_to_the_read_only_socket() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name, mode in (("sock", 0o600), ("sock-ro", 0o666)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(mode)
            listener.listen()
        if not (child := os.fork()):
            os.setgroups([])
            os.setuid(65534)
            with Client(f"{directory}/sock") as client:
                os._exit(0 if client.call("ListPools") == {} else 1)
        listener.settimeout(60)
        caller, _ = listener.accept()
        with caller:
            assert b"ListPools" in caller.recv(4096)
            caller.sendall(b"{}\0")
            assert os.waitpid(child, 0)[1] == 0


def refused_to_another_user(path: str) -> DaemonUnreachable:
    """Connect as a user without rights, in a process of its own; return the error."""
    receiving, sending = os.pipe()
    if not (child := os.fork()):
        os.setgroups([])
        os.setuid(65534)
        try:
            Client(path)
        except DaemonUnreachable as error:
            os.write(sending, json.dumps([error.message, error.hint]).encode())
            os._exit(0)
        os._exit(1)
    os.close(sending)
    with open(receiving, "rb") as told:  # noqa: PTH123 - a file descriptor
        said = told.read()
    assert os.waitpid(child, 0)[1] == 0
    message, hint = json.loads(said)
    return DaemonUnreachable(message, hint=hint)


def test_a_user_who_may_not_connect_is_told_who_may_and_nothing_of_starting_the_daemon() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name in ("sock", "sock-ro"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(0o600)
            listener.listen()
        error = refused_to_another_user(f"{directory}/sock")
        assert "sock-ro: only root and members" in error.message
        assert ("sudo" in error.hint, "systemctl" in error.hint) == (True, False)


@pytest.mark.parametrize("stale", [False, True])
def test_a_user_whom_nobody_serves_yet_is_not_told_to_start_what_root_can_reach(stale: bool) -> None:
    """systemd listens at root's socket; virt-dmemd, which makes the readers' one, does not run (any more)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name, mode in [("sock", 0o600), *([("sock-ro", 0o666)] if stale else [])]:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(mode)
            if mode == 0o600:
                listener.listen()
        error = refused_to_another_user(f"{directory}/sock")
        assert "does not serve you now: root alone may connect at" in error.message
        assert ("sudo" in error.hint, "systemctl" in error.hint) == (True, False)


def test_the_group_of_the_socket_is_named_to_who_is_not_in_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name in ("sock", "sock-ro"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            os.chown(f"{directory}/{name}", 0, grp.getgrnam("adm").gr_gid)
            Path(directory, name).chmod(0o660)
        assert "usermod -aG adm USER" in refused_to_another_user(f"{directory}/sock").hint


def test_one_that_listens_and_is_silent_is_to_be_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virt_dmem.ipc.client.ANSWER_TIMEOUT_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 107 bytes long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        with pytest.raises(DaemonUnreachable, match=r"timed out after 0\.1 s") as error, Client("sock") as daemon:
            daemon.call("ListPools")
    assert "systemctl restart virt-dmemd.service" in error.value.hint


@pytest.mark.parametrize("method", ["Attach", "RetirePool", "ListPools", "ShowDomain"])
def test_of_a_call_that_was_not_answered_it_says_that_it_may_have_been_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        with Client("sock") as daemon:
            caller, _ = listener.accept()
            caller.close()
            with pytest.raises(DaemonUnreachable, match="closed the connection") as error:
                daemon.call(method)
    assert "journalctl" in error.value.hint
    assert ("cannot be known" in error.value.hint) == (method in ("Attach", "RetirePool"))


def test_a_daemon_that_does_not_know_a_call_is_to_be_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        with Client("sock") as daemon:
            caller, _ = listener.accept()
            with caller:
                error = "org.varlink.service.MethodNotFound"
                caller.sendall(
                    json.dumps({"error": error, "parameters": {"method": "x.LimitPool"}}).encode() + b"\0"
                )
                with pytest.raises(DaemonUnreachable, match=r"another version, without x\.LimitPool") as caught:
                    daemon.call("LimitPool")
    assert "systemctl restart virt-dmemd.service" in caught.value.hint
