# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake a QEMU monitor, for messages that no real QEMU can be made to send in a test."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rig.processes import wait_for

__all__ = ["FakeMonitor"]

_GREETING = {"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}


class FakeMonitor:
    """A listener in place of a domain's monitor; as a context, from when virt-dmemd is connected.

    virt-dmemd trusts the process that libvirt recorded as the domain's QEMU: meanwhile that is this process.

    ``answers``: the return values by command; ``{}`` for all others.
    """

    def __init__(self, path: Path, name: str, answers: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._pid_file = Path(f"/run/libvirt/qemu/{name}.pid")
        self._answers = dict(answers or {})
        self._listener = socket.socket(socket.AF_UNIX)
        self._peer: socket.socket | None = None
        self.connections = 0
        """The number of connections that negotiated capabilities."""

    def __enter__(self) -> FakeMonitor:
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._qemu = self._pid_file.read_text()
        self._pid_file.write_text(str(os.getpid()))
        threading.Thread(target=self._serve, daemon=True).start()
        wait_for("virt-dmemd to connect", lambda: self.connections)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid_file.exists():
            self._pid_file.write_text(self._qemu)
        self._path.unlink()
        self.disconnect()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an event."""
        assert self._peer is not None
        self._peer.sendall(json.dumps(message).encode() + b"\r\n")

    def flood(self, message: Mapping[str, Any]) -> None:
        """Say something over and over, until this connection is ended by the other side."""
        assert self._peer is not None
        peer, line = self._peer, json.dumps(message).encode() + b"\r\n"
        with contextlib.suppress(OSError):
            while True:
                peer.sendall(line)

    def disconnect(self) -> None:
        """Close the connection, and accept the next one."""
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it is over
            while True:
                peer, _ = self._listener.accept()
                with peer, contextlib.suppress(OSError):  # the peer disconnected
                    self._peer = peer
                    self.send(_GREETING)
                    for command in _commands(peer):
                        self.send({"return": self._answer(command), "id": command.get("id")})
                        if command["execute"] == "qmp_capabilities":
                            self.connections += 1

    def _answer(self, command: Mapping[str, Any]) -> Any:
        found = self._answers.get(command["execute"], {})
        return found(command.get("arguments", {})) if callable(found) else found


def _commands(peer: socket.socket) -> Iterator[Any]:
    """Yield the requests, one JSON object after another: nothing separates them."""
    asked = ""
    while chunk := peer.recv(4096).decode():
        asked = (asked + chunk).lstrip()
        while asked:
            try:
                command, end = json.JSONDecoder().raw_decode(asked)
            except ValueError:  # there is more to come
                break
            asked = asked[end:].lstrip()
            yield command
