# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the daemon's latency on a host of 8 nodes and 6 TiB with 10 000 domains.

The real ``virt-dmemd`` with its socket, planner and ledger, in the private namespace. Simulated are: the nodes (a
fake sysfs tree over the real one), the memory (hugetlbfs mounts without pages, in which extents are files without
pages that free the amount they would have), the helper (a stand-in that touches nothing) and QEMU (there is none:
running domains are in the ledger as left by a previous daemon). The speed of memory is not measured.

One start is the hook's ``prepare`` and ``start``, one stop its ``stopped`` and ``release``. The time of the
stand-in is subtracted from ``prepare``, which leaves parsing the XML, planning, reserving and creating the files.
CPU time is the daemon's. A round is ``--operations`` starts and stops; its median and 99th percentile are one
figure each.
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
from pathlib import Path

import msgspec

from bench.alone import run_alone
from bench.goals import within
from bench.results import Results
from tests.rig.daemon import LOG, SOCKET, STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.fake_tree import fake_tree
from tests.rig.launcher import write_launcher
from tests.rig.namespace import enter_private_namespace
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Extent, ExtentState
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.host import kernel
from virt_dmem.ipc.client import Client
from virt_dmem.pools import extent_files
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.segment_id import SegmentId
from virt_dmem.units import GIB, MIB, TIB

__all__ = ["LIST", "MEDIAN", "NAME", "RELEASE", "RESERVE", "WORST", "measure"]

NAME = "scale"
RESERVE, RELEASE, LIST, BUSY = "reserve", "release", "list --json", "answer when busy"
MEMORY = "memory of the daemon"
NODES = 8
SEGMENTS = {"scale": 4 * TIB, "scale+1": TIB, "scale+2": TIB}
PAGE = 2 * MIB
SIZES = (256 * MIB, 512 * MIB, 512 * MIB, GIB)
"""Sizes of domains, equally likely: 10 000 of them are 5.6 TiB."""
BACKING = Path("/var/lib/libvirt/qemu/ram/libvirt/qemu")
MEDIAN, WORST = "median", "99 %"
GOALS = {
    (RESERVE, MEDIAN): 5,
    (RESERVE, WORST): 20,
    (RELEASE, MEDIAN): 5,
    (RELEASE, WORST): 20,
    (LIST, MEDIAN): 1000,
}
"""Limits in milliseconds with the largest number of domains."""
MOST_MIB = 100
"""Limit of the daemon's memory with that number."""


# The host that is not there


def set_up(scratch: Path) -> None:
    """Lay a fake sysfs over the real one, and mount the pool.

    The nodes report no memory: else the daemon would keep all their free memory on its node.
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
        record = PoolRecord(name, "hugetlbfs", PAGE, str(mount), shares, "ready", kernel.boot_id())
        (records / f"{name}.json").write_bytes(msgspec.json.encode(record))
    helper = scratch / "helper"
    helper.write_text("""#!/bin/sh\necho '{"event":"done","bytes":0}'\n""")
    helper.chmod(0o755)
    (scratch / "config").write_text(f'[prefault]\nhelper = "{helper}"\n[daemon]\ngroup = "root"\n')


def populate(count: int, chance: random.Random) -> None:
    """Write a number of running domains into a new ledger, with the files that they would have."""
    ledger = Ledger(STATE / "ledger.sqlite", kernel.boot_id())
    left = {(name, node): size // NODES for name, size in SEGMENTS.items() for node in range(NODES)}
    for number in range(count):
        uuid, size = _uuid(chance), chance.choice(SIZES)
        segment, node = max(left, key=lambda where: (left[where], where))
        left[segment, node] -= size
        path = extent_files.path_of(Path("/run/virt-dmem/pools", segment), uuid, "pc.ram")
        extent_files.create(path, size)
        found = Extent(
            0,
            uuid,
            "pc.ram",
            SegmentId(segment),
            path,
            size,
            PAGE,
            "bind",
            ExtentState.POPULATED,
            kernel.boot_id(),
            "",
            {node: size},
        )
        ledger.adopt(found, f"running-{number}")
        (BACKING / f"{number + 1}-running-{number}").mkdir(parents=True)
    ledger.close()


def _uuid(chance: random.Random) -> str:
    return str(uuids.UUID(int=chance.getrandbits(128), version=4))


def empty() -> None:
    for file in STATE.glob("ledger.sqlite*"):
        file.unlink()
    for name in SEGMENTS:
        for path in Path("/run/virt-dmem/pools", name).glob("libvirt-*/*"):
            extent_files.remove(path)
    for path in BACKING.glob("*"):
        for link in path.iterdir():
            link.unlink()
        path.rmdir()


# Who asks


class Starter:
    """Start and stop domains as libvirt's hook does: one connection for each operation."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._running: list[str] = []
        self._number = 0
        self.took: dict[str, list[float]] = {}
        """Seconds, by operation."""

    def start(self) -> None:
        """Start a new domain; one in ten has two cells on two nodes."""
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
        with Client(SOCKET) as daemon, self._timed("show"):
            steps = daemon.call("ShowDomain", domain=uuid)["domain"]["steps"]
        stand_in = sum(step["seconds"] for step in steps if step["step"].startswith("prefault"))
        self.took.setdefault(RESERVE, []).append(prepared - stand_in)

    def stop(self) -> None:
        """Stop a random one of the domains that were started here."""
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
        """Start and stop domains ``operations`` times in total, at random, at most ``most`` at a time."""
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
        self.took.setdefault(name, []).append(time.perf_counter() - began)


_PINGER = "import sys; from bench import scale; scale.ping(sys.argv[1])"
_PING = b'{"method": "org.varlink.service.GetInfo", "parameters": {}}\0'


def ping(path: str) -> None:
    """Send the daemon an empty call 100 times a second, and print the durations once the input ends."""
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
            took.append(time.perf_counter() - began)
            time.sleep(0.01)
    sys.stdout.write(json.dumps(took))


class Pinger:
    """A process that measures the latency of the daemon's event loop."""

    def __enter__(self) -> Pinger:
        command = [sys.executable, "-c", _PINGER, str(SOCKET)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        out, _err = self._process.communicate()
        self.took: list[float] = json.loads(out)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in seconds, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


# The measurements


class _Figures:
    """Add figures with a number of domains."""

    def __init__(self, results: Results, domains: int) -> None:
        self._results = results
        self._case = case_of(domains)

    def add(self, what: str, figure: float, unit: str) -> None:
        self._results.add(NAME, what, self._case, figure, unit=unit)

    def add_seconds(self, what: str, seconds: float) -> None:
        self.add(what, seconds * 1000, "ms")

    def add_quantiles(self, what: str, took: Sequence[float]) -> None:
        """Add the median and the 99th percentile of a round's figures."""
        self.add_seconds(f"{what}, {MEDIAN}", statistics.median(took))
        self.add_seconds(f"{what}, {WORST}", sorted(took)[math.ceil(len(took) * 0.99) - 1])


def case_of(domains: int) -> str:
    """Return the name of a series with a number of domains."""
    return f"{domains} domains"


def _at_size(results: Results, daemon: Daemon, scratch: Path, domains: int, options: argparse.Namespace) -> None:
    """Measure with a number of running domains."""
    figures = _Figures(results, domains)
    daemon.stop()
    empty()
    populate(domains, random.Random(options.seed))
    began = time.perf_counter()
    daemon.start()
    with Client(SOCKET) as client:
        client.call("ListPools")
    figures.add_seconds("start of the daemon", time.perf_counter() - began)

    cpu = _cpu_seconds(daemon.pid)
    with Pinger() as pinger:
        time.sleep(options.idle)
    idle_cpu = (_cpu_seconds(daemon.pid) - cpu) / options.idle
    figures.add("CPU when idle", idle_cpu * 100, "% of a CPU")
    figures.add_quantiles("answer when idle", pinger.took)

    starter = Starter(random.Random(options.seed + 1))
    starter.run(30, most=5)  # what is loaded only once
    for _ in range(options.rounds):
        starter.took.clear()
        cpu, began = _cpu_seconds(daemon.pid), time.perf_counter()
        with Pinger() as pinger:
            starter.run(options.operations)
        used = _cpu_seconds(daemon.pid) - cpu - idle_cpu * (time.perf_counter() - began)
        for what, took in sorted(starter.took.items()):
            figures.add_quantiles(what, took)
        figures.add_seconds("CPU time of a start or stop", max(0.0, used) / options.operations)
        figures.add_quantiles(BUSY, pinger.took)

    command = [str(write_launcher(scratch, "virt_dmem.cli.main")), "list", "--json"]
    for _ in range(options.rounds):
        began = time.perf_counter()
        with (scratch / "list").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        figures.add_seconds(f"{LIST}, {MEDIAN}", time.perf_counter() - began)
    assert len(json.loads((scratch / "list").read_text())["domains"]) == domains
    figures.add(MEMORY, peak_mib(daemon.pid), "MiB")
    figures.add("ledger", sum(file.stat().st_size for file in STATE.glob("ledger.sqlite*")) / MIB, "MiB")


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Measure with each number of domains, and judge the largest."""
    sizes = sorted(int(number) for number in arguments.domains.split(","))
    enter_private_namespace()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        set_up(scratch)
        daemon = Daemon(
            (scratch / "config").read_text(), env={"MALLOC_ARENA_MAX": "1"}, module="bench.scale_daemon"
        )  # as set in its unit
        try:
            for domains in sizes:
                _at_size(results, daemon, scratch, domains, arguments)
        except BaseException:
            with suppress(OSError):
                sys.stderr.write(LOG.read_text()[-3000:])
            raise
        finally:
            daemon.stop()
    case = case_of(sizes[-1])
    for (what, quantile), most in GOALS.items():
        found = results.find(NAME, f"{what}, {quantile}", case)
        within(results, f"scale: {what} with {case}, {quantile}", most, found)
    found = results.find(NAME, MEMORY, case)
    within(results, f"scale: {MEMORY} with {case}", MOST_MIB, found)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domains", default="1,100,10000", help="how many run, by commas (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=200, help="starts and stops in a round (%(default)s)")
    parser.add_argument("--idle", type=float, default=6.0, metavar="SECONDS", help="how long to watch it idle")
    parser.add_argument("--seed", type=int, default=1)


if __name__ == "__main__":
    sys.exit(run_alone(NAME, __doc__, measure, options=_options))
