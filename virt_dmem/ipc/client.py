# SPDX-License-Identifier: GPL-2.0-or-later
"""Call the daemon over the control socket: one message out, one or more back. Imports nothing slow."""

from __future__ import annotations

import json
import socket

from virt_dmem.errors import DaemonDenied, DaemonUnreachable, error_from_code
from virt_dmem.ipc.version import INTERFACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, Self

__all__ = ["Client"]

ANSWER_TIMEOUT_SECONDS = 30.0

_HUNG_UP = "See 'journalctl -u virt-dmemd' for the reason."
_READING = ("List", "Show", "Filter")
"""The beginnings of the names of calls that change nothing."""
_UNKNOWN = (
    "It cannot be known whether it did what it was asked to: 'virt-dmem list', 'virt-dmem show DOMAIN' and"
    " 'virt-dmem pool list' show it."
)


class Client:
    """Connect to ``virt-dmemd``; use it as a context manager.

    :raise DaemonUnreachable: When nothing listens, or no reply arrives for 30 seconds.
    :raise DaemonDenied: When this user may not connect.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_SECONDS)
        self._buffer = b""
        try:
            try:
                self._socket.connect(str(path))
            except PermissionError:  # all but root use the read-only socket: READERS_SOCKET_NAME
                self._path = f"{path}-ro"
                self._socket.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            if self._path != path:
                raise self._serves_root_only(path, error) from error
            raise self._unreachable_by(error) from error
        except OSError as error:
            self._socket.close()
            raise self._unreachable_by(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _unreachable_by(self, error: OSError) -> DaemonUnreachable:
        if isinstance(error, TimeoutError):
            return self._unreachable(
                f"timed out after {self._socket.gettimeout():g} s without a reply",
                "Restart it with 'systemctl restart virt-dmemd.service'; running guests are not affected.",
            )
        if isinstance(error, PermissionError):
            return DaemonDenied(
                f"You may not connect to virt-dmemd at {self._path}: only root and members of its group may.",
                hint=f"Run the command with sudo, or {self._how_to_join()}.",
            )
        if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
            return self._unreachable("it closed the connection", _HUNG_UP)
        return self._unreachable(error.strerror or error)

    def _how_to_join(self) -> str:
        """Return how to become one of those who may use the socket."""
        import grp  # noqa: PLC0415 -- for this error only
        import os  # noqa: PLC0415

        try:
            found = os.stat(self._path)  # noqa: PTH116 -- pathlib takes 10 ms
            group = grp.getgrgid(found.st_gid).gr_name
        except (OSError, KeyError):
            return "as a member of the group that 'ls -l' shows for that socket"
        if not found.st_gid:
            return "have root create that group ('virt-dmem check' shows how)"
        return f"have root add you to the group {group} ('usermod -aG {group} USER'), and log in again"

    def _serves_root_only(self, path: object, error: OSError) -> DaemonUnreachable:
        """Return the error of a user other than root where root's socket exists, and that of the others does not.

        systemd may listen at root's while virt-dmemd, which creates the other one, does not run.
        """
        return DaemonUnreachable(
            f"virt-dmemd does not serve you now: root alone may connect at {path}, and at {self._path} it says:"
            f" {error.strerror}.",
            hint="Run the command with sudo, which starts virt-dmemd if it does not run; while it runs, members of"
            " its group may read.",
        )

    def _unreachable(
        self,
        reason: object,
        hint: str = "Start it with 'systemctl restart virt-dmemd.socket', or run 'virt-dmemd' in the foreground.",
    ) -> DaemonUnreachable:
        return DaemonUnreachable(f"virt-dmemd does not answer at {self._path}: {reason}.", hint=hint)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call ``method`` and return the parameters of its reply.

        :raise DmemError: The daemon's error, as the class it was there.
        """
        (reply,) = self._exchange(method, parameters, more=False)
        return reply

    def call_more(self, method: str, **parameters: object) -> Iterator[dict[str, Any]]:
        """Call ``method``, and yield the parameters of each reply as it arrives."""
        yield from self._exchange(method, parameters, more=True)

    def _exchange(self, method: str, parameters: dict[str, object], *, more: bool) -> Iterator[dict[str, Any]]:
        call: dict[str, object] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        if more:
            call["more"] = True
        try:
            self._socket.sendall(json.dumps(call).encode() + b"\0")
            while True:
                reply = json.loads(self._message())
                if "error" in reply:
                    raise self._error(reply["error"], reply.get("parameters") or {})
                yield reply.get("parameters") or {}
                if not reply.get("continues"):
                    return
        except OSError as error:
            raise _unanswered(method, self._unreachable_by(error)) from error
        except EOFError as error:
            raise _unanswered(method, self._unreachable("it closed the connection", _HUNG_UP)) from error

    def _message(self) -> bytes:
        chunks = [self._buffer]
        while b"\0" not in chunks[-1]:
            chunks.append(self._socket.recv(65536))
            if not chunks[-1]:
                raise EOFError
        message, _, self._buffer = b"".join(chunks).partition(b"\0")
        return message

    def _error(self, name: str, parameters: dict[str, Any]) -> Exception:
        if name == f"{INTERFACE}.Failed":
            return error_from_code(parameters["code"], parameters["message"], parameters["hint"])
        if name == "org.varlink.service.MethodNotFound":
            return self._unreachable(
                f"it is of another version, without {parameters.get('method')}",
                "Restart it with 'systemctl restart virt-dmemd.service'; running guests are not affected.",
            )
        return self._unreachable(f"it replied {name} {parameters}")


def _unanswered(method: str, error: DaemonUnreachable) -> DaemonUnreachable:
    """Add to the error of a call that was sent, and not answered, what is not known of it."""
    if method.startswith(_READING):
        return error
    return DaemonUnreachable(error.message, hint=f"{error.hint} {_UNKNOWN}")
