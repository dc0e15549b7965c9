# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a QEMU that has just started which memory backends are its guest's RAM.

At ``started`` a hook waits, and nobody is connected to the domain's second monitor yet: so all questions are sent
at once, behind ``qmp_capabilities``, and the answers are read in one go; QEMU executes them one after another
(``monitor_qmp_read`` in its monitor/qmp.c). What does not answer in time, or is not that QEMU, counts as no
monitor: the command line is known anyway.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.domain_xml.qemu.arguments import options
from virt_dmem.domain_xml.qemu.guest_ram import BOOT, RamUse, ram_uses
from virt_dmem.host import unix_socket
from virt_dmem.host.kernel import ROOT
from virt_dmem.host.processes import GONE

__all__ = ["GuestRam", "memory_directory", "read_guest_ram"]

log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""Together with what else is done at ``started``, less than ``deadline.DEADLINE_SECONDS``."""
_ANSWER_BYTES = 512 << 10
"""256 memory devices are described in a fifth of it."""
_NOT_RAM = ("nvdimm", "virtio-pmem", "sgx-epc")
"""Memory devices with a file, or memory, of their own."""
_QUESTIONS: tuple[Mapping[str, Any], ...] = (
    {"execute": "qmp_capabilities"},
    {"execute": "qom-get", "arguments": {"path": "/machine", "property": "memory-backend"}},
    {"execute": "query-memory-devices"},
    {"execute": "query-memory-size-summary"},
)
_REQUEST = b"".join(msgspec.json.encode({**question, "id": at}) + b"\n" for at, question in enumerate(_QUESTIONS))


@dataclass(frozen=True)
class GuestRam:
    """The RAM of a QEMU's guest."""

    uses: tuple[RamUse, ...]
    boot_bytes: int | None
    """The memory that the machine has without memory devices; ``None``: its monitor did not tell."""


def read_guest_ram(uuid: str, pid: int, *, root: Path = ROOT) -> GuestRam:
    """Return the RAM of a QEMU (PID): as its monitor says, where it has one, else by its command line.

    NUMA nodes are known from the command line only: QMP has no query for them. Either process may delay the answer:
    for worker threads.
    """
    told = ram_uses(_arguments(pid, root))
    answers = _ask(uuid, pid)
    machine, devices, sizes = (answers.get(at) for at in range(1, len(_QUESTIONS)))
    boot, others = [use for use in told if use.user in BOOT], [use for use in told if use.user not in BOOT]
    try:
        if machine is not None:
            nodes = [use for use in boot if use.user == BOOT[1]]
            boot = [RamUse(BOOT[0], _id(machine)), *nodes] if machine or not nodes else nodes
        if devices is not None:
            others = [*_of_devices(devices)]
        return GuestRam((*boot, *others), None if sizes is None else int(sizes["base-memory"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        log.warning("monitor of domain %s: an answer has not the expected content", uuid)
        return GuestRam(tuple(told), None)


def memory_directory(pid: int, *, root: Path = ROOT) -> Path | None:
    """Return the directory in which a QEMU was told to open its boot memory; ``None``: it was not. As above."""
    given = options(_arguments(pid, root))
    path = next((path for option in given if option.name == "object" and (path := option.get("mem-path"))), "")
    return Path(path).parent if path else None


def _of_devices(devices: Any) -> Iterator[RamUse]:  # noqa: ANN401 -- what a QEMU sent
    for device in devices:
        data = device["data"]
        if str(device["type"]) not in _NOT_RAM and data.get("memdev"):
            yield RamUse(f"memory device {str(data.get('id') or device['type'])[:80]}", _id(data["memdev"]))


def _id(path: str) -> str:
    """Return the id of a memory backend, given its path in QEMU's tree of objects."""
    return PurePosixPath(path).name[:1024]


def _arguments(pid: int, root: Path) -> list[str]:
    try:
        return (root / f"proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except GONE:
        return []


def _ask(uuid: str, pid: int) -> dict[int, Any]:
    """Return the answers of a QEMU by the numbers of their questions; ``None`` for what it cannot answer."""
    answers: dict[int, Any] = {}
    try:
        with unix_socket.connect(socket_of(uuid)) as monitor:
            if unix_socket.peer_pid(monitor) != pid:
                log.warning("monitor of domain %s: its socket is not of its QEMU, process %d", uuid, pid)
                return {}
            deadline, heard, left = time.monotonic() + ANSWER_SECONDS, b"", _ANSWER_BYTES
            monitor.send(_REQUEST)  # it is short, and the buffer is empty
            ready = select.poll()
            ready.register(monitor, select.POLLIN)
            while len(_QUESTIONS) - 1 not in answers and left > 0:
                if not ready.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                    raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s")
                if not (more := monitor.recv(1 << 16)):
                    break
                left -= len(more)
                *lines, heard = (heard + more).split(b"\n")
                answers.update(_answers(lines))
    except FileNotFoundError:  # it has none
        return {}
    except OSError as error:
        log.warning("monitor of domain %s does not answer: %s", uuid, error)
    return answers


def _answers(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    for line in lines:
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(message, dict) and isinstance(message.get("id"), int):  # else a greeting, or an event
            yield message["id"], message.get("return")
