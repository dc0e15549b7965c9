# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure how long a hook waits while members of the group crowd the control socket.

The host that is not there, its daemon and its domains are those of ``bench.scale``. The crowd has all the
connections that others than root may have, and does with them what it likes: it calls every method that it may, as
fast as it is answered, many at a time, never reads an answer or a few bytes of it, sends what is no call, and comes
back as soon as it is hung up on. One crowd reads what it asked for, one does not, one does no more than to connect,
again and again. Meanwhile domains are started and stopped, as root, one connection for each
operation of the hook.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Never

from bench import scale
from bench.alone import run_alone
from bench.goals import within
from bench.results import Results
from tests.rig.daemon import SOCKET, Daemon
from tests.rig.namespace import enter_private_namespace
from virt_dmem.ipc.version import INTERFACE

__all__ = ["NAME", "measure"]

NAME = "crowd"
OPERATIONS = ("prepare", "start", "stopped", "release")
CONNECTIONS = 64
"""Of the crowd, in all."""
PROCESSES = 2
NOBODY = 65534
GOAL_MS = 200


# The crowd


def _call(method: str, **parameters: object) -> bytes:
    name = method if "." in method else f"{INTERFACE}.{method}"
    return json.dumps({"method": name, "parameters": parameters}).encode() + b"\0"


CALLS = (
    _call("ListDomains"),
    _call("ShowDomain", domain="running-1"),
    _call("ShowDomain", domain="x" * 60_000),
    _call("ShowBackends", domain="running-1"),
    _call("ListPools"),
    _call("ListAlerts"),
    _call("ShowMetrics"),
    _call("org.varlink.service.GetInfo"),
    _call("org.varlink.service.GetInterfaceDescription", interface=INTERFACE),
    _call("Reconcile", dry_run=False),
    _call("ListDomains", nonsense=[{}] * 10_000),
    b"[" * 60_000 + b"\0",
    b"9" * 60_000 + b"\0",
    b"x" * 70_000,
)
CROWDS = {
    "that reads": ("reads", "pipelines"),
    "that does not read": ("crawls", "never reads", "reads"),
    "that connects": (),
}
"""What its members do."""


class _Member:
    """One connection of the crowd: it is made anew whenever it ends."""

    def __init__(self, selector: selectors.BaseSelector, way: str, calls: Iterator[bytes]) -> None:
        self._selector = selector
        self._way = way
        self._calls = calls
        self._left = b""
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(True)
        self._socket.connect(f"{SOCKET}-ro")
        self._socket.setblocking(False)
        self._left = self._next()
        self._selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def _next(self) -> bytes:
        call = next(self._calls)
        return call * 30 if self._way == "pipelines" and len(call) < 1000 else call

    def step(self, events: int) -> None:
        """Do what can be done now."""
        try:
            if events & selectors.EVENT_WRITE and self._left:
                self._left = self._left[self._socket.send(self._left) :]
                if not self._left:
                    self._selector.modify(self._socket, selectors.EVENT_READ, self)
            if events & selectors.EVENT_READ:
                if self._way == "never reads":
                    self._selector.modify(self._socket, selectors.EVENT_WRITE, self)
                    self._left = self._left or self._next()
                    return
                got = self._socket.recv(1 if self._way == "crawls" else 1 << 20)
                if not got:
                    raise ConnectionResetError
                if got.endswith(b"\0") and not self._left:
                    self._left = self._next()
                    self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        except BlockingIOError:
            pass
        except OSError:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._connect()


def crowd(seed: int, name: str) -> None:
    """Be a part of the crowd until killed; a process of a member of the group."""
    os.setgroups([])
    os.setgid(0)
    os.setuid(NOBODY)
    if not CROWDS[name]:
        _connect()
    chance = random.Random(seed)
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS // PROCESSES):
            calls = [*CALLS] + [CALLS[0]] * 6
            chance.shuffle(calls)
            _Member(selector, chance.choice(CROWDS[name]), itertools.cycle(calls))
        while True:
            for key, events in selector.select(0.1):
                key.data.step(events)


def _connect() -> Never:
    """Connect for ever; when there is no room for one more, at once again."""
    some: deque[socket.socket] = deque(maxlen=500)
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.connect(f"{SOCKET}-ro")
        some.append(one)


@contextlib.contextmanager
def crowded(name: str) -> Iterator[None]:
    """Have a crowd there."""
    code = "import sys; from bench import crowd; crowd.crowd(int(sys.argv[1]), sys.argv[2])"
    some = [subprocess.Popen([sys.executable, "-c", code, str(number), name]) for number in range(PROCESSES)]
    try:
        time.sleep(3)
        assert all(process.poll() is None for process in some), "the crowd has gone"
        yield
    finally:
        for process in some:
            process.kill()
            process.wait()


# The measurements


def _at_size(results: Results, daemon: Daemon, domains: int, options: argparse.Namespace) -> None:
    daemon.stop()
    scale.empty()
    scale.populate(domains, random.Random(options.seed))
    daemon.start()
    case = scale.case_of(domains)
    starter = scale.Starter(random.Random(options.seed + 1))
    starter.run(30, most=5)
    for name in ("", *CROWDS):
        what = f"in a crowd {name}" if name else "alone"
        starter.took.clear()
        with crowded(name) if name else contextlib.nullcontext():
            starter.run(options.operations, most=5)
        for operation in OPERATIONS:
            took = starter.took[operation]
            results.add(NAME, f"{operation} {what}, median", case, statistics.median(took) * 1000, unit="ms")
            results.add(NAME, f"{operation} {what}, longest", case, max(took) * 1000, unit="ms")
    results.add(NAME, "memory of the daemon", case, scale.peak_mib(daemon.pid), unit="MiB")


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure with each number of domains, and judge the most."""
    sizes = sorted(int(number) for number in arguments.domains.split(","))
    enter_private_namespace()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        scale.set_up(scratch)
        daemon = Daemon(
            (scratch / "config").read_text(), env={"MALLOC_ARENA_MAX": "1"}, module="bench.scale_daemon"
        )
        try:
            for domains in sizes:
                _at_size(results, daemon, domains, arguments)
        finally:
            daemon.stop()
    case = scale.case_of(sizes[-1])
    for operation, name in itertools.product(OPERATIONS, CROWDS):
        found = results.find(NAME, f"{operation} in a crowd {name}, longest", case)
        within(results, f"crowd {name}: {operation} with {case}", GOAL_MS, found)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domains", default="1000,10000", help="how many run, by commas (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=60, help="starts and stops (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
