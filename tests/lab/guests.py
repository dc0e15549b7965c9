# SPDX-License-Identifier: GPL-2.0-or-later
"""Run KVM guests on the lab's host, and read their memory's placement from the kernel."""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Sequence
from pathlib import Path

from tests.lab.host import Host
from tests.lab.image import PROJECT
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, fetch_kernel, make_initramfs
from tests.rig.private_libvirt import CONSOLES

__all__ = [
    "CMDLINE",
    "IMAGE",
    "boot",
    "complaints",
    "console",
    "define",
    "lives_on",
    "log_of",
    "memory_of",
    "pool",
    "provide_guest",
    "provide_own_kernel",
    "search_pool",
    "write_pattern",
]

_BOOT = Path("/var/lib/libvirt/boot")
CMDLINE = "maxcpus=1 mitigations=off nokaslr tsc=reliable no_timer_check noreplace-smp"
"""Little work for an emulated guest on an emulated host; a second CPU makes it ten times slower."""
_PATTERN = b"virt-dmem guest wrote this"
_WRITE = """
import mmap, os
for name in {names}:
    fd = os.open("/run/virt-dmem/pools/guests/libvirt-{uuid}/" + name, os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        for at in range(len(memory) // 2, len(memory), 4096):
            memory[at : at + {length}] = {pattern}
"""
_SEARCH = """
import ctypes, mmap, os, sys
path = "/run/virt-dmem/pools/guests/search"
size = {size}
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
os.unlink(path)
os.posix_fallocate(fd, 0, size)
with mmap.mmap(fd, size) as memory:
    print("pattern", memory.find({pattern}) >= 0)
    step = 64 << 20
    clean = bytes(step)
    print("clean", all(memory[at : at + step] == clean[: size - at] for at in range(0, size, step)))
"""
IMAGE = GuestImage(_BOOT / "vmlinuz", _BOOT / "initrd")


def provide_guest(host: Host) -> None:
    """Copy a kernel and an initramfs to it, for ``define(…, boots=True)``."""
    host.run(f"mkdir -p {_BOOT} {CONSOLES} && cp {PROJECT}/.cache/guest/kernel/boot/vmlinuz-* {IMAGE.kernel}")
    host.write(str(IMAGE.initrd), make_initramfs(fetch_kernel()))


def provide_own_kernel(host: Host, root: Path, script: str = "") -> None:
    """Do the same with the host's own kernel and the busybox of its root; ``script`` runs once it is up."""
    host.run(f"mkdir -p {_BOOT} {CONSOLES} && cp /boot/vmlinuz-$(uname -r) {IMAGE.kernel}")
    host.write(str(IMAGE.initrd), make_initramfs(root, script, busybox=root / "usr/bin/busybox"))


def define(
    host: Host,
    name: str,
    *,
    cells: Sequence[str],
    boots: bool = False,
    kind: str = "kvm",
    first_node: int = 0,
    arch: str = "x86_64",
) -> str:
    """Define a domain with these cells, each strictly on its own node, with its memory in the pool ``guests``.

    :return: Its UUID.
    """
    uuid = str(uuids.uuid4())
    nodes = range(first_node, first_node + len(cells))
    memnodes = "".join(
        f"<memnode cellid='{cell}' mode='strict' nodeset='{node}'/>" for cell, node in enumerate(nodes)
    )
    xml = domain_xml(
        name,
        uuid=uuid,
        cells=cells,
        image=IMAGE if boots else None,
        numatune=f"<memory mode='strict' nodeset='{nodes[0]}-{nodes[-1]}'/>{memnodes}",
        kind=kind,
        arch=arch,
        machine="virt" if arch == "aarch64" else "pc",
        cmdline=CMDLINE if arch == "x86_64" else "maxcpus=1 mitigations=off nokaslr",
    )
    host.run(f"mkdir -p {CONSOLES} && virt-dmem rewrite --pool guests >/tmp/{name}.xml", stdin=xml)
    host.run(f"virsh -q define /tmp/{name}.xml")
    return uuid


def log_of(name: str) -> Path:
    """Return the file that has the output of a guest's console."""
    return CONSOLES / f"{name}.log"


def boot(host: Host, name: str, *, seconds: float = 90) -> None:
    """Wait until a guest that was started has booted."""
    host.wait_for(f"grep -q 'virt-dmem guest up' {log_of(name)}", timeout=seconds)


def lives_on(host: Host, name: str, uuid: str) -> None:
    """Restart libvirtd and the daemon under a guest; verify that its QEMU is the same, and keeps printing."""
    before = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout
    host.run("systemctl restart virt-dmemd.service && systemctl restart libvirtd.service", timeout=240)
    assert host.run(f"virsh domstate {name}").stdout.split() == ["running"]
    assert host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout == before
    lines = len(console(host, name).splitlines())
    host.wait_for(f"test $(wc -l <{CONSOLES}/{name}.log) -gt {lines}", timeout=120)


def memory_of(host: Host, uuid: str) -> dict[str, tuple[int, set[int]]]:
    """Return, by memory backend, the page size in bytes and the nodes of the pages that QEMU has touched."""
    pid = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout.split()[0]
    found = {}
    for line in host.run(f"cat /proc/{pid}/numa_maps").stdout.splitlines():
        if match := re.search(rf"file=/run/virt-dmem/pools/\S*libvirt-{uuid}/(\S+)", line):
            page = re.search(r"kernelpagesize_kB=(\d+)", line)
            nodes = {int(node) for node in re.findall(r" N(\d+)=\d+", line)}
            found[match[1]] = (int(page[1]) * 1024 if page else 0, nodes)
    return found


def pool(host: Host) -> dict[str, int]:
    """Return sizes of the pool ``guests`` in bytes, as the daemon reports them."""
    shown = host.json("virt-dmem pool show guests --json")["pool"]
    return {key: shown[key] for key in ("capacity_bytes", "reserved_bytes", "free_bytes")}


def complaints(host: Host) -> dict[str, str]:
    """Return what ``check`` says of all that did not pass, by name, without the one of the kernel's HVO."""
    checks = host.json("virt-dmem check --json", check=False)["checks"]
    found = {check["name"]: check["message"] for check in checks if check["status"] != "PASS"}
    found.pop("hvo", None)
    return found


def console(host: Host, name: str) -> str:
    """Return the output of a guest's console."""
    return host.run(f"cat {CONSOLES}/{name}.log", check=False).stdout


def write_pattern(host: Host, uuid: str, *backends: str) -> None:
    """Write a pattern into each page of the upper half of a guest's memory, which should be suspended."""
    script = _WRITE.format(names=backends, uuid=uuid, length=len(_PATTERN), pattern=_PATTERN)
    host.run(["/usr/bin/python3", "-c", script])


def search_pool(host: Host, size: int) -> list[str]:
    """Search ``size`` free bytes of the pool ``guests``; return words: "pattern", "clean", each with a boolean."""
    script = _SEARCH.format(size=size, pattern=_PATTERN)
    return host.run(["/usr/bin/python3", "-c", script], timeout=600).stdout.split()
