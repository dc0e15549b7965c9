# SPDX-License-Identifier: GPL-2.0-or-later
"""Count system calls, a number that load does not change. No libvirtd runs here.

A limit is the number at the time of writing, plus a tenth for other versions of Python, libc and kernel. A commit
that raises one states the benefit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.hook_cost import NOT_OURS, OURS, SHARED, commands
from bench.list_cost import LIST, cases, hold
from tests.rig import nova
from tests.rig.daemon import Daemon
from tests.rig.processes import answers, wait_for
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.native.programs import HELPER

MIB = 1 << 20
HUGE = 2 * MIB
PAGES = 16


def system_calls(command: Sequence[str | Path], scratch: Path, stdin: bytes = b"") -> Counter[str]:
    """Run a command, and return the number of calls of each system call by it and all its children."""
    counts = scratch / "strace"
    done = subprocess.run(
        ["strace", "-c", "-f", "-o", counts, *command], input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found: Counter[str] = Counter()
    for line in counts.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdecimal() and fields[-1] != "total":
            found[fields[-1]] = int(fields[3])
    assert found
    return found


@pytest.fixture
def huge_pool(hugetlbfs_pool: str) -> Iterator[Path]:
    """Provide a directory on hugetlbfs."""
    yield Path("/run/virt-dmem/pools", hugetlbfs_pool)


@pytest.mark.needs_hugepages
def test_the_helper_makes_one_call_for_each_huge_page_and_one_for_all_that_are_there(
    huge_pool: Path, tmp_path: Path
) -> None:
    path = huge_pool / "counted"
    path.touch()
    os.truncate(path, PAGES * HUGE)
    command = [HELPER, "--size", str(PAGES * HUGE), "--page-size", str(HUGE), "--threads", "1", "--mode"]
    try:
        empty = system_calls([*command, "populate", path], tmp_path)
        assert path.stat().st_blocks * 512 == PAGES * HUGE
        full = system_calls([*command, "zero", path], tmp_path)
    finally:
        path.unlink()
    assert empty["madvise"] - full["madvise"] == PAGES - 1, (empty, full)
    assert full.total() <= 71, full


def test_the_helper_makes_a_call_for_2_mib_of_tmpfs(tmp_path: Path) -> None:
    path = Path(f"/dev/shm/virt-dmem-counted-{os.getpid()}")
    path.touch()
    try:
        calls = []
        for pages in (PAGES, 2 * PAGES):
            os.truncate(path, pages * HUGE)
            command = [HELPER, "--size", str(pages * HUGE), "--page-size", "4096", "--threads", "1"]
            calls.append(system_calls([*command, "--mode", "populate", path], tmp_path)["madvise"])
            os.truncate(path, 0)
    finally:
        path.unlink()
    assert calls[1] - calls[0] == PAGES


@pytest.mark.parametrize(
    ("case", "ceiling"), [(NOT_OURS, 217), (SHARED, 217), ("not ours, reconnect", 59), (OURS, 298)]
)
def test_the_hook_makes_few_calls(rig: None, tmp_path: Path, case: str, ceiling: int) -> None:
    with Daemon():
        command, stdin = commands(tmp_path)[case]
        calls = system_calls(command, tmp_path, stdin)
    assert calls.total() <= ceiling, calls


@pytest.mark.parametrize("case", [NOT_OURS, SHARED])
def test_of_a_domain_that_no_rule_takes_nothing_is_started_and_rules_are_hardly_looked_at(
    rig: None, tmp_path: Path, case: str
) -> None:
    found = {}
    for name, config in (("without rules", ""), ("with a rule", nova.RULE)):
        with Daemon(config):
            command, stdin = commands(tmp_path)[case]
            found[name] = system_calls(command, tmp_path, stdin)
            found["start"] = system_calls([command[0], command[1], "start", *command[3:]], tmp_path, stdin)
    for calls in found.values():
        assert calls["execve"] == 2, "the shell and cat"
        assert calls["connect"] == 0
    more = found["with a rule"] - found["without rules"]
    assert more.total() <= (60 if case is SHARED else 0), more  # it reads the marks byte by byte
    if case is NOT_OURS:
        more = found["without rules"] - found["start"]
        assert more.total() <= 2, "it looks for rules that reject domains, and whether the domain is parked"


def test_list_json_makes_few_calls(rig: None, tmp_path: Path) -> None:
    with Daemon('[daemon]\ngroup = "root"\n'):
        hold(3)
        subprocess.run(cases(tmp_path)[LIST], stdout=subprocess.DEVNULL, check=True)  # what Python writes once
        calls = system_calls(cases(tmp_path)[LIST], tmp_path)
    assert calls.total() <= 957, calls


def test_asking_a_qemu_for_its_ram_is_one_round_trip(rig: None, tmp_path: Path) -> None:
    uuid = "6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f0001"
    script = (
        "import sys; from virt_dmem.hypervisor.guest_ram import read_guest_ram as read\n"
        "for _ in range(int(sys.argv[1])): assert read(sys.argv[2], int(sys.argv[3])).boot_bytes == 64 << 20"
    )
    qemu = [
        "qemu-system-x86_64",
        "-S",
        "-nodefaults",
        "-display",
        "none",
        "-m",
        "64",
        "-accel",
        "tcg",
        "-uuid",
        uuid,
    ]
    monitor = [
        "-chardev",
        f"socket,id=m,path={socket_of(uuid)},server=on,wait=off",
        "-mon",
        "chardev=m,mode=control",
    ]
    backend = ["-object", "memory-backend-ram,id=pc.ram,size=64M", "-machine", "pc,memory-backend=pc.ram"]
    socket_of(uuid).parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([*qemu, *backend, *monitor]) as running:
        try:
            wait_for("its monitor", lambda: answers(socket_of(uuid)))
            once, often = (
                system_calls([sys.executable, "-c", script, str(times), uuid, str(running.pid)], tmp_path)
                for times in (1, 11)
            )
        finally:
            running.kill()
    calls = Counter({name: (often[name] - once[name]) / 10 for name in often})
    assert calls["sendto"] <= 1, calls
    assert calls["recvfrom"] <= 6, calls  # QEMU sends the greeting and each answer by itself
    assert calls.total() <= 40, calls
