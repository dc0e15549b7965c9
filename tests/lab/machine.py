# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the lab's host: QEMU with TCG boots the image, and the QEMU guest agent runs commands on it.

A machine writes to a layer above the image, which exists as long as the machine, also over reboots.
``python -m tests.lab.machine`` boots one for interactive use.
"""

from __future__ import annotations

import base64
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from tests.lab.host import PATIENCE, Done, Host, LabCommandFailed
from tests.lab.image import PROJECT, Image, the_image
from tests.rig.processes import RigError, tail

__all__ = ["Machine"]

_REPOSITORY = Path(__file__).parents[2]
_MIB, _GIB = 1 << 20, 1 << 30
_BELOW_4_GIB = 3 * _GIB
"""End of the low memory of QEMU's machine ``pc``; the rest begins at 4 GiB (pc_init1 in QEMU)."""
_CMDLINE = "console={console} quiet loglevel=4 panic=-1 mitigations=off systemd.show_status=no nokaslr nohz=off"
_ENVIRONMENT = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
_BOOT_TRIES = 3
"""Occasionally one hangs before its root is mounted: a CPU waits for a timer that never fires."""


class _Agent:
    """The guest agent's JSON over a unix socket (QEMU's docs/interop/qemu-ga-ref); one request at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._received = b""

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 60.0) -> Any:
        """Send a request, and return the answer.

        :raise OSError: When there is none in time, or the machine is gone.
        """
        question = {"execute": command, "arguments": dict(arguments or {})}
        self._socket.sendall(json.dumps(question).encode() + b"\n")
        while True:
            answer = json.loads(self._line(timeout * PATIENCE).strip(b"\xff"))
            if "error" in answer:
                raise RigError(f"{command}: {answer['error']['desc']}")
            return answer["return"]

    def synchronise(self, number: int) -> bool:
        """Return whether the agent answers; drop answers to requests of an earlier connection."""
        question = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._socket.sendall(b"\xff" + json.dumps(question).encode() + b"\n")
        deadline = time.monotonic() + 2
        try:
            while time.monotonic() < deadline:
                line = self._line(2)
                if json.loads(line.rpartition(b"\xff")[2] or b"{}").get("return") == number:
                    return True
        except OSError:  # also when the machine is gone, which the caller sees
            pass
        return False

    def _line(self, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            received = self._socket.recv(1 << 20)
            if not received:
                raise ConnectionResetError("The lab's machine is gone.")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line


class Machine(Host):
    """A host with NUMA nodes, the project's tree in ``PROJECT``, and the project installed.

    ``node_gib``: memory of each node, which has one CPU. ``hole_mib``: the memory at the end of each node that is
    withheld from the kernel, as on a host with memory outside its memory map; ``holes`` has them as address and
    size in bytes. ``cmdline``: kernel parameters beside the lab's own. ``machine``, ``devices``: QEMU's machine
    if it is not the architecture's usual one, and devices beside the lab's own, as ``-M`` and ``-device`` take
    them. ``tap``: a tap device that its network card is plugged into, after the id of a process in the network
    namespace of that; it has no card without. It writes to a layer above ``image``, which is removed with it.
    """

    def __init__(
        self,
        image: Image,
        *,
        node_gib: Sequence[int] = (3, 3),
        hole_mib: int = 0,
        cmdline: str = "",
        machine: str = "",
        devices: Sequence[str] = (),
        tap: tuple[int, str] | None = None,
        name: str = "lab",
    ) -> None:
        self.image = image
        self.node_gib = tuple(node_gib)
        self.holes = tuple((end - hole_mib * _MIB, hole_mib * _MIB) for end in _ends(self.node_gib) if hole_mib)
        self.machine, self.devices = machine or image.architecture.machine, tuple(devices)
        self.tap = tap
        self.cmdline = " ".join([*(f"memmap={size:#x}${start:#x}" for start, size in self.holes), cmdline])
        self._scratch = tempfile.TemporaryDirectory(prefix=f"virt-dmem-{name}-")
        self.directory = Path(self._scratch.name)
        self.console = self.directory / "console.log"
        self.boot_seconds: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: _Agent | None = None
        self.disk = self.directory / "disk.qcow2"
        layer = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.disk, self.disk]
        subprocess.run(layer, check=True)

    @property
    def has_huge_entries(self) -> bool:
        """Return whether its kernel maps raw page frames by huge entries (6.12 does, 6.1 does not)."""
        return self.image.suite != "bookworm"

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine, and discard its writes."""
        self.kill()
        self._scratch.cleanup()

    # -- power

    def start(self, cmdline: str | None = None, *, serial: str = "") -> None:
        """Boot and wait until commands can be run.

        :raise RigError: When it does not come up; with its console.
        """
        if cmdline is not None:
            self.cmdline = cmdline
        for left in reversed(range(_BOOT_TRIES)):
            try:
                self._boot(serial)
            except RigError as error:
                if not left or serial:
                    raise
                print(f"lab: {error}\nlab: once more")
            else:
                return

    def _boot(self, serial: str) -> None:
        started = time.monotonic()
        agent = self.directory / "agent.sock"
        agent.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command(agent, serial), start_new_session=not serial)
        of_its_kind = self.machine == self.image.architecture.machine
        patience = PATIENCE if of_its_kind else 3 * PATIENCE  # with an IOMMU each interrupt costs more
        self._agent = self._wait_for_agent(agent, started + self.image.architecture.boot_seconds * patience)
        self.boot_seconds.append(time.monotonic() - started)

    def reboot(self, cmdline: str | None = None) -> None:
        """Reboot as an administrator does, optionally with another kernel command line."""
        self._stop("systemctl reboot")
        self.start(cmdline)

    def power_off(self) -> None:
        """Shut it down as an administrator does."""
        self._stop("systemctl poweroff")

    def kill(self) -> None:
        """Kill QEMU, which is equivalent to a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._close_agent()

    def wait(self) -> None:
        """Wait until it was shut down from inside."""
        assert self._process is not None
        self._process.wait()

    def _stop(self, command: str) -> None:
        assert self._process is not None
        self._ask("guest-exec", {"path": "/bin/sh", "arg": ["-c", command]})
        try:
            self._process.wait(180 * PATIENCE)
        except subprocess.TimeoutExpired as late:
            raise RigError(f"{command}: the machine is still up after 180 s.\n{tail(self.console)}") from late
        self._process = None
        self._close_agent()

    def _close_agent(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None

    def _command(self, agent: Path, serial: str) -> list[str]:
        ours = self.image.architecture
        command = [*_qemu_of(self.image.emulator, ours.emulator), "-M", self.machine, "-accel", "tcg,thread=multi"]
        command += ["-cpu", ours.cpu, "-nodefaults"]
        for device in self.devices:
            command += ["-device", device]
        command += ["-no-reboot", "-display", "none", "-serial", serial or f"file:{self.console}"]
        command += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)]
        command += ["-append", f"{_CMDLINE.format(console=ours.console)} {self.cmdline}".strip()]
        sockets = f",sockets={len(self.node_gib)}" if ours.is_foreign else ""  # else two nodes share a cluster
        command += ["-m", f"{sum(self.node_gib)}G", "-smp", f"{len(self.node_gib)}{sockets}"]
        for node, size in enumerate(self.node_gib):
            command += ["-object", f"memory-backend-ram,id=m{node},size={size}G,reserve=off"]
            command += ["-numa", f"node,nodeid={node},memdev=m{node},cpus={node}"]
        command += ["-drive", f"if=virtio,format=qcow2,cache=unsafe,file={self.disk}"]
        command += ["-device", "virtio-serial", "-chardev", f"socket,id=agent,path={agent},server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        if self.tap:
            holder, name = self.tap
            command = ["nsenter", f"--net=/proc/{holder}/ns/net", *command]
            command += ["-netdev", f"tap,id=net,ifname={name},script=no,downscript=no"]
            mac = (b"RT\0" + crc32(name.encode()).to_bytes(4, "big")[:3]).hex(":")
            command += ["-device", f"virtio-net-pci,netdev=net,mac={mac}"]
        return [*command, "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng,rng=rng"]

    def _wait_for_agent(self, path: Path, deadline: float) -> _Agent:
        assert self._process is not None
        number = 0
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
            try:
                agent = _Agent(path)
            except OSError:
                continue
            number += 1
            if agent.synchronise(number):
                return agent
            agent.close()
        ended = self._process.poll()
        self.kill()
        what = "did not come up" if ended is None else f"ended with status {ended}"
        raise RigError(f"The lab's machine {what}.\n{tail(self.console)}")

    # -- commands

    def run(
        self, command: str | Sequence[str], *, stdin: str | bytes = b"", timeout: float = 180.0, check: bool = True
    ) -> Done:
        """Run a shell command, or a program with arguments, as root.

        :raise LabCommandFailed: With ``check``, when its status is not 0.
        :raise RigError: When it has not ended after ``timeout`` seconds; it continues to run.
        """
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(command)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        question: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        question["env"] = _ENVIRONMENT
        if data:
            question["input-data"] = base64.b64encode(data).decode()
        pid = self._ask("guest-exec", question)["pid"]
        deadline = time.monotonic() + timeout * PATIENCE
        pause = 0.01
        while not (status := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > deadline:
                raise RigError(f"{shown}: has not ended after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        said = [
            base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data")
        ]
        done = Done(status.get("exitcode", 128 + status.get("signal", 0)), *said)
        if check and done.status:
            raise LabCommandFailed(shown, done)
        return done

    def _ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if self._agent is None:
            raise RigError("The lab's machine is not up.")
        try:
            return self._agent.ask(command, arguments)
        except OSError as error:
            raise RigError(f"{command}: {error}\n{tail(self.console)}") from error

    def console_tail(self) -> str:
        """Return the end of its serial console's output."""
        return tail(self.console)


def _qemu_of(root: Path, program: str) -> list[str]:
    """Return the command for the QEMU of another Debian: with its own dynamic loader, libraries and firmware."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    command = [
        root / "usr/lib64/ld-linux-x86-64.so.2",
        "--library-path",
        libraries,
        root / "usr/bin" / program,
    ]
    return [*map(str, command), "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]


def _ends(node_gib: Sequence[int]) -> list[int]:
    """Return the address at which the memory of each node ends."""
    ends = [sum(node_gib[: node + 1]) * _GIB for node in range(len(node_gib))]
    moved = _GIB if ends[-1] > _BELOW_4_GIB else 0
    return [end + moved if end > _BELOW_4_GIB else end for end in ends]


def main() -> None:
    """Boot a machine with its console on this terminal."""
    machine = Machine(the_image())
    try:
        print(f"lab: you will be root; virt-dmem is installed, from {PROJECT}, where 'make install' works")
        print("lab: 'poweroff' there, or Ctrl-A X here, ends it")
        machine.start(serial="mon:stdio")
        machine.wait()
    finally:
        machine.close()


if __name__ == "__main__":
    try:
        main()
    except RigError as error:
        sys.exit(str(error))
