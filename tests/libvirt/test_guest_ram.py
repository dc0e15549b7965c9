# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose RAM is not the memory of the pool does not start, whoever gave it other memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lxml import etree

from tests.rig.command import checked, reserved, virt_dmem, virt_dmem_fails
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for

OWN_MEMORY = ("-object", "memory-backend-memfd,id=own,size=64M,share=on", "-machine", "memory-backend=own")
REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"


def with_emulator(xml: str, emulator: Path) -> str:
    root = etree.fromstring(xml)
    devices = root.find("devices")
    assert devices is not None
    element = etree.Element("emulator")
    element.text = str(emulator)
    devices.insert(0, element)
    return etree.tostring(root, encoding="unicode")


@pytest.fixture
def wrapper() -> Iterator[Path]:
    """Provide an emulator that adds arguments, from a file, for domains only; the XML does not show them."""
    with TemporaryDirectory() as directory:  # pytest's own is closed to QEMU's user
        script, more = Path(directory, "emulator"), Path(directory, "arguments")
        script.parent.chmod(0o755)
        more.touch()
        script.write_text(
            f'#!/bin/sh\ncase " $* " in *" -uuid "*) exec qemu-system-x86_64 "$@" $(cat {more});; esac\n'
            'exec qemu-system-x86_64 "$@"\n'
        )
        script.chmod(0o755)
        yield script


def test_memory_in_the_commandline_is_refused_before_anything_is_changed(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("brings", qemu_args=OWN_MEMORY))
    said = virt_dmem_fails("apply", "brings", "--pool", tmpfs_pool, status=1)
    assert "memory-backend=own" in said
    assert "gives the machine another memory backend" in said
    assert "dmem:memory" not in libvirtd.virsh("dumpxml", "--inactive", "brings")
    libvirtd.virsh("start", "--paused", "brings")  # it never was ours


def test_memory_that_is_added_to_an_applied_domain_is_told_of_and_does_not_start(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("changed"))
    virt_dmem("apply", "changed", "--pool", tmpfs_pool)
    root = etree.fromstring(libvirtd.virsh("dumpxml", "--inactive", "changed"))
    box = root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline")
    assert box is not None
    for argument in OWN_MEMORY:
        etree.SubElement(box, "{http://libvirt.org/schemas/domain/qemu/1.0}arg", value=argument)
    libvirtd.define(etree.tostring(root, encoding="unicode"))
    with pytest.raises(RigError, match="gives the machine another memory backend"):
        libvirtd.virsh("start", "--paused", "changed")
    check = checked()["domains"]
    assert check["status"] == "FAIL"
    assert "memory-backend=own" in check["message"]
    virt_dmem("unapply", "changed")
    libvirtd.virsh("start", "--paused", "changed")


@pytest.mark.parametrize("options", [(), ("--no-monitor",)], ids=["monitor", "no monitor"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (OWN_MEMORY, "the machine has memory backend 'own'"),
        (("-m", "maxmem=1G,slots=2", "-object", OWN_MEMORY[1], "-device", "pc-dimm,id=more,memdev=own"),
         "memory device more has memory backend 'own'"),
    ],
)  # fmt: skip
def test_a_qemu_that_has_other_ram_is_ended_and_charged_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, wrapper: Path,
    arguments: tuple[str, ...], complaint: str, options: tuple[str, ...],
) -> None:  # fmt: skip
    libvirtd.define(with_emulator(domain_xml("wrapped", memory="64MiB"), wrapper))
    virt_dmem("apply", "wrapped", "--pool", tmpfs_pool, *options)
    libvirtd.virsh("start", "--paused", "wrapped")
    libvirtd.virsh("destroy", "wrapped")
    wrapper.with_name("arguments").write_text(" ".join(arguments))
    with pytest.raises(RigError, match=complaint):
        libvirtd.virsh("start", "--paused", "wrapped")
    wait_for("its memory to be given back", lambda: reserved(tmpfs_pool) == 0)


def test_only_the_monitor_knows_of_memory_that_a_file_defines(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, wrapper: Path
) -> None:
    libvirtd.define(with_emulator(domain_xml("read", memory="64MiB"), wrapper))
    virt_dmem("apply", "read", "--pool", tmpfs_pool)
    file = wrapper.with_name("memory.cfg")
    file.write_text(
        '[object "own"]\n  qom-type = "memory-backend-memfd"\n  size = "64M"\n  share = "on"\n'
        '[machine]\n  memory-backend = "own"\n'
    )
    file.chmod(0o644)
    wrapper.with_name("arguments").write_text(f"-readconfig {file}")
    with pytest.raises(RigError, match="the machine has memory backend 'own'"):
        libvirtd.virsh("start", "--paused", "read")


@pytest.mark.parametrize("options", [(), ("--no-monitor",)], ids=["monitor", "no monitor"])
def test_a_guest_with_cells_and_memory_devices_starts_whole(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, options: tuple[str, ...]
) -> None:
    devices = (
        "<memory model='dimm'><target><size unit='MiB'>32</size><node>0</node></target></memory>"
        "<memory model='virtio-mem'><target><size unit='MiB'>32</size><node>1</node>"
        "<block unit='MiB'>2</block><requested unit='MiB'>0</requested></target></memory>"
    )
    ivshmem = (
        "-object",
        "memory-backend-memfd,id=shm,size=1M,share=on",
        "-device",
        "ivshmem-plain,memdev=shm,addr=0x1e",
    )
    libvirtd.define(
        domain_xml("whole", cells=["32MiB", "32MiB"], max_memory="256MiB", devices=devices, qemu_args=ivshmem)
    )
    virt_dmem("apply", "whole", "--pool", tmpfs_pool, *options)
    libvirtd.virsh("start", "--paused", "whole")
    assert reserved(tmpfs_pool) == 128 << 20
