# SPDX-License-Identifier: GPL-2.0-or-later
"""Run KVM guests on the lab's host, and read their memory's placement from the kernel."""

from __future__ import annotations

import re
import uuid as uuids
from pathlib import Path

from tests.lab.image import PROJECT
from tests.lab.machine import Machine
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
    "memory_of",
    "pool",
    "provide_guest",
]

_BOOT = Path("/var/lib/libvirt/boot")
CMDLINE = "maxcpus=1 mitigations=off nokaslr tsc=reliable no_timer_check noreplace-smp"
"""Little work for an emulated guest on an emulated host; a second CPU makes it ten times slower."""
IMAGE = GuestImage(_BOOT / "vmlinuz", _BOOT / "initrd")


def provide_guest(machine: Machine) -> None:
    """Copy a kernel and an initramfs to the host, for ``define(…, boots=True)``."""
    machine.run(f"mkdir -p {_BOOT} {CONSOLES} && cp {PROJECT}/.cache/guest/kernel/boot/vmlinuz-* {IMAGE.kernel}")
    machine.write(str(IMAGE.initrd), make_initramfs(fetch_kernel()))


def define(machine: Machine, name: str, *, cells: tuple[str, str], boots: bool = False) -> str:
    """Define a KVM domain with two cells, each strictly on its own node, with its memory in the pool ``guests``.

    :return: Its UUID.
    """
    uuid = str(uuids.uuid4())
    memnodes = "".join(f"<memnode cellid='{node}' mode='strict' nodeset='{node}'/>" for node in (0, 1))
    xml = domain_xml(
        name,
        uuid=uuid,
        cells=cells,
        image=IMAGE if boots else None,
        numatune=f"<memory mode='strict' nodeset='0-1'/>{memnodes}",
        kind="kvm",
        cmdline=CMDLINE,
    )
    machine.run(f"mkdir -p {CONSOLES} && virt-dmem rewrite --pool guests >/tmp/{name}.xml", stdin=xml)
    machine.run(f"virsh -q define /tmp/{name}.xml")
    return uuid


def boot(machine: Machine, name: str) -> None:
    """Wait until a guest that was started has booted."""
    machine.wait_for(f"grep -q 'virt-dmem guest up' {CONSOLES}/{name}.log", timeout=90)


def lives_on(machine: Machine, name: str, uuid: str) -> None:
    """Restart libvirtd and the daemon under a guest; verify that its QEMU is the same, and keeps printing."""
    before = machine.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout
    machine.run("systemctl restart virt-dmemd.service && systemctl restart libvirtd.service", timeout=240)
    assert machine.run(f"virsh domstate {name}").stdout.split() == ["running"]
    assert machine.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout == before
    lines = len(console(machine, name).splitlines())
    machine.wait_for(f"test $(wc -l <{CONSOLES}/{name}.log) -gt {lines}", timeout=120)


def memory_of(machine: Machine, uuid: str) -> dict[str, tuple[int, set[int]]]:
    """Return, by memory backend, the page size in bytes and the nodes of the pages that QEMU has touched."""
    pid = machine.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout.split()[0]
    found = {}
    for line in machine.run(f"cat /proc/{pid}/numa_maps").stdout.splitlines():
        if match := re.search(rf"file=/run/virt-dmem/pools/\S*libvirt-{uuid}/(\S+)", line):
            page = re.search(r"kernelpagesize_kB=(\d+)", line)
            nodes = {int(node) for node in re.findall(r" N(\d+)=\d+", line)}
            found[match[1]] = (int(page[1]) * 1024 if page else 0, nodes)
    return found


def pool(machine: Machine) -> dict[str, int]:
    """Return sizes of the pool ``guests`` in bytes, as the daemon reports them."""
    shown = machine.json("virt-dmem pool show guests --json")["pool"]
    return {key: shown[key] for key in ("capacity_bytes", "reserved_bytes", "free_bytes")}


def complaints(machine: Machine) -> dict[str, str]:
    """Return the failed checks of ``check`` by name, without the one of the kernel's HVO."""
    checks = machine.json("virt-dmem check --json")["checks"]
    found = {check["name"]: check["message"] for check in checks if check["status"] != "PASS"}
    found.pop("hvo", None)
    return found


def console(machine: Machine, name: str) -> str:
    """Return the output of a guest's console."""
    return machine.run(f"cat {CONSOLES}/{name}.log", check=False).stdout
