# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``grower``: a guest with hotplugged memory that reports its memory size on its console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for

__all__ = ["MIB", "MODULES", "SCRIPT", "extents", "has_mib", "links", "start", "wait_for_memory"]

MIB = 1 << 20
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_mem"]
SCRIPT = "(while :; do grep MemTotal: /proc/meminfo; sleep 0.5; done) &"


def start(
    libvirtd: PrivateLibvirt, pool: str, image: GuestImage | None, *options: str, hotplugged: str = "online_movable"
) -> str:
    """Start ``grower`` of 192 MiB, prepared for 2 GiB; return its UUID, with an image once the guest is up.

    ``options``: of ``apply``. ``hotplugged``: "online_movable" for a guest that can always release it,
    "online_kernel" for one that uses it for itself, "offline" for one that does not touch it.
    """
    cmdline = f"memhp_default_state={hotplugged}"
    uuid = libvirtd.define(domain_xml("grower", memory="192MiB", image=image, cmdline=cmdline))
    virt_dmem("apply", "grower", "--pool", pool, "--hotplug-max", "2G", *options)
    libvirtd.virsh("start", "grower", *([] if image else ["--paused"]))
    if image:
        wait_for("the guest", lambda: "cmdline:" in libvirtd.console("grower"), timeout=120)
    return uuid


def has_mib(libvirtd: PrivateLibvirt) -> int:
    """Return the memory size that the guest reports in MiB."""
    return int(re.findall(r"MemTotal: *(\d+) kB", libvirtd.console("grower"))[-1]) // 1024


def wait_for_memory(libvirtd: PrivateLibvirt, least: int, most: int) -> None:
    """Wait until the guest reports ``mib`` MiB."""
    wait_for(f"{least} to {most} MiB in the guest", lambda: least <= has_mib(libvirtd) <= most, timeout=60)


def extents() -> dict[str, dict[str, Any]]:
    """Return its extents by alias."""
    return {extent["alias"]: extent for extent in virt_dmem_json("show", "grower")["domain"]["extents"]}


def links() -> list[Path]:
    """Return the links from libvirt's directories to pools."""
    return [path for path in Path("/var/lib/libvirt/qemu/ram").rglob("*") if path.is_symlink()]
