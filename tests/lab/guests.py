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
    "memory_of",
    "pool",
    "provide_guest",
]

_BOOT = Path("/var/lib/libvirt/boot")
CMDLINE = "maxcpus=1 mitigations=off nokaslr tsc=reliable no_timer_check noreplace-smp"
"""Little work for an emulated guest on an emulated host; a second CPU makes it ten times slower."""
IMAGE = GuestImage(_BOOT / "vmlinuz", _BOOT / "initrd")


def provide_guest(host: Host) -> None:
    """Copy a kernel and an initramfs to it, for ``define(…, boots=True)``."""
    host.run(f"mkdir -p {_BOOT} {CONSOLES} && cp {PROJECT}/.cache/guest/kernel/boot/vmlinuz-* {IMAGE.kernel}")
    host.write(str(IMAGE.initrd), make_initramfs(fetch_kernel()))


def define(host: Host, name: str, *, cells: Sequence[str], boots: bool = False, kind: str = "kvm") -> str:
    """Define a domain with these cells, each strictly on its own node, with its memory in the pool ``guests``.

    :return: Its UUID.
    """
    uuid = str(uuids.uuid4())
    nodes = range(len(cells))
    memnodes = "".join(f"<memnode cellid='{node}' mode='strict' nodeset='{node}'/>" for node in nodes)
    xml = domain_xml(
        name,
        uuid=uuid,
        cells=cells,
        image=IMAGE if boots else None,
        numatune=f"<memory mode='strict' nodeset='0-{nodes[-1]}'/>{memnodes}",
        kind=kind,
        cmdline=CMDLINE,
    )
    host.run(f"mkdir -p {CONSOLES} && virt-dmem rewrite --pool guests >/tmp/{name}.xml", stdin=xml)
    host.run(f"virsh -q define /tmp/{name}.xml")
    return uuid


def boot(host: Host, name: str) -> None:
    """Wait until a guest that was started has booted."""
    host.wait_for(f"grep -q 'virt-dmem guest up' {CONSOLES}/{name}.log", timeout=90)


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
    """Return the failed checks of ``check`` by name, without the one of the kernel's HVO."""
    checks = host.json("virt-dmem check --json")["checks"]
    found = {check["name"]: check["message"] for check in checks if check["status"] != "PASS"}
    found.pop("hvo", None)
    return found


def console(host: Host, name: str) -> str:
    """Return the output of a guest's console."""
    return host.run(f"cat {CONSOLES}/{name}.log", check=False).stdout
