# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure whether the daemon stays quick on a host of 8 nodes and 6 TiB with 10 000 domains.

The real ``virt-dmemd`` with its socket, planner and ledger, in the private namespace. Not real are: the nodes (a
fake sysfs tree over the real one), the memory (mounts of hugetlbfs without pages behind them, in which extents are
files without pages), the helper (a stand-in that touches nothing and says so) and QEMU (there is none: domains that
run stand in the ledger as a daemon before this one left them). Nothing is said here of how fast memory is.

One start is the hook's ``prepare`` and ``start``, one stop its ``stopped`` and ``release``. Of ``prepare`` the time
of the stand-in is taken off: what is left is to read the XML, plan, reserve and make the files. CPU time is the
daemon's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid as uuids
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from tests.rig.daemon import LOG, SOCKET, STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.launcher import write_launcher
from tests.rig.namespace import enter_private_namespace
from tests.unit.fake_tree import fake_tree
from virt_dmem import extents, host
from virt_dmem.backends.base import NodeShare, PoolRecord
from virt_dmem.ipc.client import Client
from virt_dmem.ledger import Ledger
from virt_dmem.records import Extent, ExtentState
from virt_dmem.rewrite import apply
from virt_dmem.units import GIB, MIB, TIB

__all__ = ["GOALS", "Result", "main", "measure"]

NODES = 8
SEGMENTS = {"scale": 4 * TIB, "scale+1": TIB, "scale+2": TIB}
PAGE = 2 * MIB
SIZES = (256 * MIB, 512 * MIB, 512 * MIB, GIB)
"""Sizes of domains, equally likely: 10 000 of them are 5.6 TiB."""
BACKING = Path("/var/lib/libvirt/qemu/ram/libvirt/qemu")
SOME = 5
"""Of so many starts one is asked about: how long its steps took."""


@dataclass(frozen=True)
class Result:
    """One figure: its quantiles (0.5, 0.99, 1.0) or a single ``value``; ``domains`` held memory meanwhile."""

    name: str
    unit: str
    domains: int
    count: int = 1
    value: float | None = None
    quantiles: dict[str, float] | None = None

    def of(self, quantile: str) -> float:
        """Return a quantile, or the only value."""
        found = (self.quantiles or {}).get(quantile, self.value)
        assert found is not None
        return found


@dataclass(frozen=True)
class Goal:
    """What a figure at the most domains may be."""

    name: str
    quantile: str
    most: float


GOALS = (
    Goal("reserve", "0.5", 5),
    Goal("reserve", "0.99", 20),
    Goal("release", "0.5", 5),
    Goal("release", "0.99", 20),
    Goal("list --json", "0.5", 1000),
    Goal("memory of the daemon", "1.0", 100),
)


# The host that is not there


def _set_up(scratch: Path) -> None:
    """Lay a fake sysfs over the real one, and mount the pool.

    The nodes say that they have no memory: where they have, the daemon holds all that is free on its node.
    """
    tree = fake_tree(scratch / "tree", memory=[0] * NODES)
    nodes = "sys/devices/system/node"
    subprocess.run(["mount", "--bind", str(tree / nodes), f"/{nodes}"], check=True)
    records = STATE / "pools"
    records.mkdir()
    for name, size in SEGMENTS.items():
        mount = Path("/run/virt-dmem/pools", name)
        mount.mkdir(parents=True)
        options = f"pagesize={PAGE},size={size},mode=0711"
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", options, "virt-dmem-scale", str(mount)], check=True)
        shares = {node: NodeShare(size // NODES, size // NODES) for node in range(NODES)}
        record = PoolRecord(name, "hugetlbfs", PAGE, str(mount), shares, "ready", host.boot_id())
        (records / f"{name}.json").write_bytes(msgspec.json.encode(record))
    helper = scratch / "helper"
    helper.write_text("""#!/bin/sh\necho '{"event":"done","bytes":0}'\n""")
    helper.chmod(0o755)
    (scratch / "config").write_text(f'[prefault]\nhelper = "{helper}"\n[daemon]\ngroup = "root"\n')


def _populate(count: int, chance: random.Random) -> None:
    """Write so many domains that run into a new ledger, with the files that they would have."""
    ledger = Ledger(STATE / "ledger.sqlite", host.boot_id())
    left = {(name, node): size // NODES for name, size in SEGMENTS.items() for node in range(NODES)}
    for number in range(count):
        uuid, size = _uuid(chance), chance.choice(SIZES)
        segment, node = max(left, key=lambda where: (left[where], where))
        left[segment, node] -= size
        path = extents.path_of(Path("/run/virt-dmem/pools", segment), uuid, "pc.ram")
        extents.create(path, size)
        found = Extent(
            0,
            uuid,
            "pc.ram",
            segment,
            path,
            size,
            PAGE,
            "bind",
            ExtentState.READY,
            host.boot_id(),
            "",
            {node: size},
        )
        ledger.adopt(found, f"running-{number}")
        (BACKING / f"{number + 1}-running-{number}").mkdir(parents=True)
    ledger.close()


def _uuid(chance: random.Random) -> str:
    return str(uuids.UUID(int=chance.getrandbits(128), version=4))


def _empty() -> None:
    for file in STATE.glob("ledger.sqlite*"):
        file.unlink()
    for name in SEGMENTS:
        for path in Path("/run/virt-dmem/pools", name).glob("libvirt-*/*"):
            extents.remove(path)
    for path in BACKING.glob("*"):
        for link in path.iterdir():
            link.unlink()
        path.rmdir()


# Who asks


class Starter:
    """Starts and stops domains as libvirt's hook does: one connection for each operation."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._running: list[str] = []
        self._number = 0
        self.took: dict[str, list[float]] = {}
        """Milliseconds, by operation."""

    def start(self) -> None:
        """Start a new domain; one of ten has two cells on two nodes."""
        self._number += 1
        name, number = f"starts-{self._number}", 100_000 + self._number
        cells: tuple[str, ...] = ()
        numatune = ""
        size = self._chance.choice(SIZES)
        if not self._chance.randrange(10):
            cells = (f"{size // 2 // MIB}MiB",) * 2
            first = self._chance.randrange(NODES - 1)
            numatune = "".join(
                f"<memnode cellid='{cell}' mode='strict' nodeset='{first + cell}'/>" for cell in range(2)
            )
        uuid = _uuid(self._chance)
        plain = domain_xml(name, uuid=uuid, memory=f"{size // MIB}MiB", cells=cells, numatune=numatune)
        xml = apply(plain.encode(), pool="scale").decode().replace("<domain ", f"<domain id='{number}' ", 1)
        prepared = self._hook("prepare", xml)
        (BACKING / f"{number}-{name}").mkdir(parents=True)
        self._hook("start", xml)
        self._running.append(xml)
        if self._number % SOME == 0:
            with Client(SOCKET) as daemon, self._timed("show"):
                steps = daemon.call("ShowDomain", domain=uuid)["domain"]["steps"]
            stand_in = sum(step["seconds"] for step in steps if step["step"].startswith("prefault")) * 1000
            self.took.setdefault("reserve", []).append(prepared - stand_in)

    def stop(self) -> None:
        """Stop one of those that were started here, whichever."""
        at = self._chance.randrange(len(self._running))
        self._running[at], xml = self._running[-1], self._running[at]
        self._running.pop()
        self._hook("stopped", xml)
        self._hook("release", xml)
        number, name = xml.split("id='", 1)[1].split("'", 1)[0], xml.split("<name>", 1)[1].split("<", 1)[0]
        directory = BACKING / f"{number}-{name}"
        for link in directory.iterdir():
            link.unlink()
        directory.rmdir()

    def run(self, operations: int, most: int = 20) -> None:
        """Start and stop so many times in all, at random, with ``most`` of these domains at a time."""
        for _ in range(operations - most):
            if not self._running or (len(self._running) < most and self._chance.random() < 0.5):
                self.start()
            else:
                self.stop()
        while self._running:
            self.stop()

    def _hook(self, operation: str, xml: str) -> float:
        with self._timed(operation), Client(SOCKET) as daemon:
            for _ in daemon.call_more("Hook", operation=operation, xml=xml):
                pass
        return self.took[operation][-1]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took.setdefault(name, []).append((time.perf_counter() - began) * 1000)


_PING = b'{"method": "org.varlink.service.GetInfo", "parameters": {}}\0'


def _ping(path: str) -> None:
    """Ask the daemon for nothing, 100 times a second, and print after SIGTERM's pipe closed how long each took."""
    took: list[float] = []
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        while not over.is_set():
            began = time.perf_counter()
            asking.sendall(_PING)
            while not asking.recv(65536).endswith(b"\0"):
                pass
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(0.01)
    sys.stdout.write(json.dumps(took))


class Pinger:
    """A process that measures how long the daemon's event loop lets others wait."""

    def __enter__(self) -> Pinger:
        command = [sys.executable, "-m", "bench.scale", "--ping", str(SOCKET)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        out, _err = self._process.communicate()
        self.took: list[float] = json.loads(out)


def _cpu_ms(pid: int) -> float:
    """Return the CPU time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int, what: str) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def _quantiles(name: str, unit: str, domains: int, took: Sequence[float]) -> Result:
    ordered = sorted(took)
    at = {
        "0.5": statistics.median(ordered),
        "0.99": ordered[math.ceil(len(ordered) * 0.99) - 1],
        "1.0": ordered[-1],
    }
    return Result(name, unit, domains, len(ordered), quantiles=at)


# The measurements


def _at_size(
    daemon: Daemon, scratch: Path, domains: int, operations: int, *, seed: int, idle: float
) -> list[Result]:
    """Measure with so many domains that run."""
    daemon.stop()
    _empty()
    _populate(domains, random.Random(seed))
    began = time.perf_counter()
    daemon.start()
    with Client(SOCKET) as client:
        client.call("ListPools")
    results = [Result("start of the daemon", "ms", domains, value=(time.perf_counter() - began) * 1000)]

    cpu = _cpu_ms(daemon.pid)
    with Pinger() as pinger:
        time.sleep(idle)
    idle_cpu = (_cpu_ms(daemon.pid) - cpu) / idle
    results.append(Result("CPU time when idle", "ms/s", domains, value=idle_cpu))
    results.append(_quantiles("answer when idle", "ms", domains, pinger.took))

    starter = Starter(random.Random(seed + 1))
    starter.run(30, most=5)  # what is loaded once
    starter.took.clear()
    cpu, began = _cpu_ms(daemon.pid), time.perf_counter()
    with Pinger() as pinger:
        starter.run(operations)
    seconds = time.perf_counter() - began
    per_operation = max(0.0, _cpu_ms(daemon.pid) - cpu - idle_cpu * seconds) / operations
    results += [_quantiles(name, "ms", domains, took) for name, took in sorted(starter.took.items())]
    results.append(Result("CPU time of a start or stop", "ms", domains, operations, per_operation))
    results.append(_quantiles("answer when busy", "ms", domains, pinger.took))

    took, cpu = [], _cpu_ms(daemon.pid)
    command = [str(write_launcher(scratch, "virt_dmem.cli.main")), "list", "--json"]
    for _ in range(5):
        began = time.perf_counter()
        with (scratch / "list").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        took.append((time.perf_counter() - began) * 1000)
    assert len(json.loads((scratch / "list").read_text())["domains"]) == domains
    results.append(_quantiles("list --json", "ms", domains, took))
    results.append(
        Result("CPU time of list --json in the daemon", "ms", domains, 5, (_cpu_ms(daemon.pid) - cpu) / 5)
    )
    results.append(Result("memory of the daemon", "MiB", domains, value=_memory_mib(daemon.pid, "VmHWM")))
    ledger = sum(file.stat().st_size for file in STATE.glob("ledger.sqlite*"))
    results.append(Result("size of the ledger", "MiB", domains, operations, ledger / MIB))
    return results


def measure(
    sizes: Sequence[int] = (1, 100, 10_000), operations: int = 2000, *, seed: int = 1, idle: float = 11.0
) -> list[Result]:
    """Return all figures, for each number of domains in ``sizes``; enters the private namespace."""
    enter_private_namespace()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _set_up(scratch)
        daemon = Daemon((scratch / "config").read_text())
        try:
            for domains in sizes:
                results += _at_size(daemon, scratch, domains, operations, seed=seed, idle=idle)
        except BaseException:
            with suppress(OSError):
                sys.stderr.write(LOG.read_text()[-3000:])
            raise
        finally:
            daemon.stop()
    return results


def missed(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each goal that was missed."""
    most = max(result.domains for result in results)
    found = {result.name: result for result in results if result.domains == most}
    return [
        f"{goal.name}: {found[goal.name].of(goal.quantile):.2f} {found[goal.name].unit}"
        f" at quantile {goal.quantile}, and {goal.most} is the goal"
        for goal in GOALS
        if found[goal.name].of(goal.quantile) > goal.most
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and tell by the exit status whether the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--domains", default="1,100,10000", help="how many run, by commas")
    parser.add_argument("--operations", type=int, default=2000, help="starts and stops at each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--ping", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.ping:
        _ping(arguments.ping)
        return 0
    sizes = [int(number) for number in arguments.domains.split(",")]
    results = measure(sizes, arguments.operations, seed=arguments.seed)
    print(f"{'figure':40} {'domains':>8} {'count':>7} {'median':>9} {'99 %':>9} {'most':>9}")
    for result in results:
        figures = [f"{result.of(at):9.2f}" for at in ("0.5", "0.99", "1.0")] if result.quantiles else []
        line = " ".join(figures) or f"{result.of('0.5'):9.2f}"
        print(f"{result.name:40} {result.domains:8} {result.count:7} {line} {result.unit}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    for sentence in (failures := missed(results)):
        print(f"MISSED {sentence}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
