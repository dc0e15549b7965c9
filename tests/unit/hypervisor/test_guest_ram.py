# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU's RAM as its monitor tells it, else by its command line. The connection is real."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from virt_dmem.domain_xml import monitor
from virt_dmem.domain_xml.qemu.guest_ram import RamUse
from virt_dmem.hypervisor import guest_ram

UUID = "6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f0001"
GREETING = b'{"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}\r\n'
EVENT = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}\r\n'
LIBVIRTS = ("qemu", "-machine", "pc,memory-backend=pc.ram", "-m", "64")
BOOT = RamUse("the machine", "pc.ram")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory() as directory:  # a short one: the path of a socket is at most 107 bytes long
        monkeypatch.setattr(monitor, "_DIRECTORY", directory)
        yield


@contextmanager
def qemu(*said: bytes, hold: bool = False) -> Iterator[list[bytes]]:
    """Say all of that to whoever connects; yield what was asked. ``hold``: then keep the connection open."""
    heard: list[bytes] = []
    end = threading.Event()

    def serve() -> None:
        with suppress(OSError), listener.accept()[0] as peer:
            peer.sendall(GREETING)
            heard.append(peer.recv(65536))
            for part in said:
                peer.sendall(part)
            if hold:
                end.wait(60)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(monitor.socket_of(UUID)))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield heard
        end.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def answers(*values: Any) -> bytes:
    return b"".join(json.dumps({"id": at, "return": value}).encode() + b"\r\n" for at, value in enumerate(values))


def read(tmp_path: Path, arguments: Sequence[str] = LIBVIRTS, pid: int = 0) -> guest_ram.GuestRam:
    process = tmp_path / "proc" / str(pid or os.getpid())
    process.mkdir(parents=True, exist_ok=True)
    (process / "cmdline").write_bytes(b"\0".join(argument.encode() for argument in arguments) + b"\0")
    return guest_ram.read_guest_ram(UUID, pid or os.getpid(), root=tmp_path)


def device(kind: str, memdev: str) -> dict[str, Any]:
    return {"type": kind, "data": {"id": f"the-{kind}", "memdev": memdev, "size": 1}}


def test_all_is_asked_at_once_and_events_in_between_are_passed_over(tmp_path: Path) -> None:
    found = answers({}, "/objects/own", [device("dimm", "/objects/memdimm0")], {"base-memory": 1 << 26})
    with qemu(EVENT, found[:70], found[70:] + EVENT, hold=True) as heard:
        ram = read(tmp_path)
    assert ram.uses == (RamUse("the machine", "own"), RamUse("memory device the-dimm", "memdimm0"))
    assert ram.boot_bytes == 1 << 26
    assert [json.loads(line)["execute"] for line in heard[0].splitlines()] == [
        "qmp_capabilities", "qom-get", "query-memory-devices", "query-memory-size-summary",
    ]  # fmt: skip


def test_nodes_are_those_of_the_command_line(tmp_path: Path) -> None:
    arguments = ("qemu", "-machine", "pc", "-numa", "node,memdev=ram-node0")
    with qemu(answers({}, "", [], {"base-memory": 1 << 26})):
        assert read(tmp_path, arguments).uses == (RamUse("a NUMA node", "ram-node0"),)


def test_memory_devices_that_are_no_ram_are_left_out(tmp_path: Path) -> None:
    kinds = ("nvdimm", "virtio-pmem", "sgx-epc", "virtio-mem", "of-tomorrow")
    with qemu(answers({}, "/objects/pc.ram", [device(kind, f"/objects/{kind}") for kind in kinds], None)):
        assert [use.backend for use in read(tmp_path).uses] == ["pc.ram", "virtio-mem", "of-tomorrow"]


@pytest.mark.parametrize(
    "said",
    [
        (),
        (b"".join(b'{"id": %d, "error": {}}\r\n' % at for at in range(4)),),
        (answers({}, 5, 7, "x"),),
        (answers({}, ["a"], [[]], {}),),
        (answers({}, "/objects/pc.ram", {"a": 1}, {"base-memory": "many"}),),
        (b"not JSON\r\n" * 1000 + b"[" * 5000 + b"\n",),
        (b"x" * (1 << 20),),
    ],
)
def test_an_answer_that_no_qemu_gives_counts_as_none(tmp_path: Path, said: tuple[bytes, ...]) -> None:
    with qemu(*said):
        assert read(tmp_path) == guest_ram.GuestRam((BOOT,), None)


def test_one_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_ram, "ANSWER_SECONDS", 0.2)
    with qemu(EVENT, hold=True):
        assert read(tmp_path) == guest_ram.GuestRam((BOOT,), None)


def test_a_stand_in_for_a_monitor_and_a_missing_one_are_asked_nothing(tmp_path: Path) -> None:
    with qemu(answers({}, "/objects/own", [], {"base-memory": 1})) as heard:
        assert read(tmp_path, pid=1).uses == (BOOT,)
    assert heard in ([], [b""])
    monitor.socket_of(UUID).unlink()
    assert read(tmp_path).uses == (BOOT,)


def test_the_directory_of_boot_memory_is_that_of_its_file(tmp_path: Path) -> None:
    read(tmp_path, ("qemu", "-object", "secret,id=s", "-object", '{"id":"pc.ram","mem-path":"/a/7-x/pc.ram"}'))
    assert guest_ram.memory_directory(os.getpid(), root=tmp_path) == Path("/a/7-x")
    read(tmp_path)
    assert guest_ram.memory_directory(os.getpid(), root=tmp_path) is None
