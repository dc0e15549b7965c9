# SPDX-License-Identifier: GPL-2.0-or-later
"""Start the programs of a private namespace, in a process that is the parent of all that they leave behind.

A process of its own, one for each namespace. It is there because

* a QEMU is adopted by another process when libvirt exits, and libvirt waits for its end, zombie included:
  process 1 does not reap it at once everywhere;
* a Python that has the project imported already, and forks, is another daemon or command ten times sooner than one
  that begins with nothing: tests start thousands;
* it ends what is left when a run of tests was killed.

``main()`` serves the other end of the socket whose number is its argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PID_DIR", "Keeper", "Kept", "keeper", "main", "start_keeper"]

PID_DIR = Path("/run/virt-dmem-rig")
"""PID files of what the rig started, for the keeper; a tmpfs of the private namespace."""

_REPOSITORY = Path(__file__).parents[2]
_MOST_BYTES = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_NAMESPACE = Path("/proc/self/ns/mnt")

_the_keeper: Keeper | None = None


class Kept:
    """A program that the keeper started; as ``subprocess.Popen`` has it."""

    def __init__(self, keeper: Keeper, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._keeper = keeper
        self._pidfd = pidfd
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, less than 0 for a signal; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return the exit status.

        :raise subprocess.TimeoutExpired: When it still runs after ``timeout`` seconds.
        """
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float) -> int | None:
        if self._status is None:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if waiting.poll(timeout * 1000):
                self._status = self._keeper.status_of(self.pid)
                os.close(self._pidfd)
        return self._status


class Keeper:
    """The keeper as its namespace's process sees it; may be asked by several threads."""

    def __init__(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        main = "from tests.rig.keeper import main; main()"
        command = [sys.executable, "-c", main, str(its.fileno())]
        subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            start_new_session=True,
        ).returncode = 0  # its exit status is not needed
        its.close()
        self._socket = ours
        self._lock = threading.Lock()
        self.namespace = _NAMESPACE.readlink()

    def start(
        self, command: Sequence[str], streams: Sequence[int], env: Mapping[str, str], *, forked: bool
    ) -> Kept:
        """Start a program with its three ``streams``.

        ``forked``: ``command`` is ``python -m MODULE …``, MODULE has ``main()``, and it is a fork of the keeper.

        :raise OSError: When there is no such program.
        """
        question = {"command": list(command), "env": dict(env), "cwd": str(Path.cwd()), "forked": forked}
        answer, fds = self._ask(question, streams)
        if "error" in answer:
            raise OSError(answer["error"])
        return Kept(self, answer["pid"], fds[0])

    def run(self, command: Sequence[str], stdin: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Have a command forked, as ``start`` does, and wait for its end."""
        with contextlib.ExitStack() as stack:
            streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
            for fd in streams:
                stack.callback(os.close, fd)
            os.pwrite(streams[0], stdin, 0)
            process = self.start(command, streams, os.environ, forked=True)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            said = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in streams[1:]]
        return subprocess.CompletedProcess(command, status, *said)

    def status_of(self, pid: int) -> int:
        """Return the exit status of one that has ended, once."""
        return int(self._ask({"status": pid})[0]["status"])

    def _ask(self, question: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], fds)
            answer, received, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, 1)
        if not answer:
            raise OSError("The keeper of this namespace has ended.")
        return json.loads(answer), list(received)


def start_keeper() -> None:
    """Start it, in the namespace that this process is in; it ends when this process does."""
    global _the_keeper  # noqa: PLW0603 - a process is in one namespace
    _the_keeper = Keeper()


def keeper() -> Keeper | None:
    """Return the keeper of the namespace that this process is in, if it has one."""
    if _the_keeper is None or _the_keeper.namespace != _NAMESPACE.readlink():
        return None
    return _the_keeper


# The process itself


class _Server:
    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._ours: set[int] = set()
        self._ended: dict[int, int] = {}
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer until the other end is closed."""
        while True:
            ready, _, _ = select.select([self._peer, self._wake], [], [])
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._peer in ready:
                data, fds, _, _ = socket.recv_fds(self._peer, _MOST_BYTES, 3)
                if not data:
                    return
                self._answer(json.loads(data), fds)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in self._ours:  # the others were left to us
                    self._ours.remove(pid)
                    self._ended[pid] = os.waitstatus_to_exitcode(status)

    def _answer(self, question: Mapping[str, Any], fds: list[int]) -> None:
        if "status" in question:
            self._reap()
            self._say({"status": self._ended.pop(question["status"])})
            return
        try:
            pid = self._fork(question, fds) if question["forked"] else self._exec(question, fds)
        except OSError as error:
            self._say({"error": str(error)})
        else:
            self._ours.add(pid)
            pidfd = os.pidfd_open(pid)  # it is a zombie at least: no other process reaps it
            self._say({"pid": pid}, [pidfd])
            os.close(pidfd)
        finally:
            for fd in fds:
                os.close(fd)

    def _say(self, answer: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self._peer, [json.dumps(answer).encode()], fds)

    @staticmethod
    def _exec(question: Mapping[str, Any], fds: Sequence[int]) -> int:
        stdin, stdout, stderr = fds
        process = subprocess.Popen(
            question["command"],
            stdin=stdin, stdout=stdout, stderr=stderr, env=question["env"], cwd=question["cwd"],
            start_new_session=True,
        )  # fmt: skip
        process.returncode = 0  # we reap by ourselves
        return process.pid

    @staticmethod
    def _fork(question: Mapping[str, Any], fds: Sequence[int]) -> int:
        _python, _m, module, *args = question["command"]
        if module not in sys.modules:
            _import(module)
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            _become(question, fds, [module, *args])
            status = int(sys.modules[module].main() or 0)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:  # noqa: BLE001 -- as Python itself does
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _import(module: str) -> None:
    """Import a module, and all others beside it if it is a package's: those that it imports only when needed."""
    importlib.import_module(module)
    if module.startswith("virt_dmem.cli."):
        package = importlib.import_module("virt_dmem.cli")
        for found in pkgutil.walk_packages(package.__path__, "virt_dmem.cli."):
            importlib.import_module(found.name)
    gc.freeze()


def _become(question: Mapping[str, Any], fds: Sequence[int], argv: list[str]) -> None:
    """Reset the forked process to the state of one that was just executed."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)  # noqa: PTH208
    os.chdir(question["cwd"])
    os.environ.clear()
    os.environ.update(question["env"])
    sys.argv = argv


def _left_behind() -> Iterator[int]:
    for directory in (PID_DIR, Path("/run/libvirt/qemu")):
        for file in directory.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                yield int(file.read_text())


def main() -> None:
    """Run the keeper, and end the remaining processes when its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started the keeper ends it
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    finally:
        for pid in _left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
