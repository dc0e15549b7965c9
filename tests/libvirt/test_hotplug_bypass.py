# SPDX-License-Identifier: GPL-2.0-or-later
"""Change memory devices by virsh, bypassing virt-dmem: it is noticed, and the ledger follows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rig.command import reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.grower import MIB, extents, has_mib, links, start, wait_for_memory
from tests.rig.guest import GuestImage
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for


def request(libvirtd: PrivateLibvirt, alias: str, size: str) -> None:
    """Request a size of the guest's virtio-mem device by virsh."""
    libvirtd.virsh("update-memory-device", "grower", "--alias", alias, "--requested-size", size)


def test_a_device_detached_bypassing_virt_dmem_is_freed(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    alias = virt_dmem_json("attach", "grower", "--size", "128M")["change"]["alias"]
    wait_for_memory(libvirtd, before + 110, before + 130)
    libvirtd.virsh("detach-device-alias", "grower", alias)
    wait_for("it to be freed", lambda: reserved(roomy_pool) == 192 * MIB)
    with pytest.raises(RigError):
        virt_dmem("detach", "grower", alias)


def test_memory_plugged_bypassing_virt_dmem_is_charged_until_a_resize_to_less(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    attached = virt_dmem_json("attach", "grower", "--size", "512M", "--type", "virtio-mem")["change"]
    assert attached["state"] == "attached"
    alias = attached["alias"]
    virt_dmem("resize", "grower", alias, "--size", "0")
    assert reserved(roomy_pool) == 192 * MIB
    request(libvirtd, alias, "256MiB")
    wait_for("all that it can have to be charged", lambda: reserved(roomy_pool) == 448 * MIB)
    wait_for_memory(libvirtd, before + 230, before + 260)
    request(libvirtd, alias, "128MiB")
    wait_for_memory(libvirtd, before + 100, before + 130)
    assert reserved(roomy_pool) == 448 * MIB
    assert virt_dmem_json("resize", "grower", alias, "--size", "128M")["change"]["state"] == "resized"
    assert reserved(roomy_pool) == 320 * MIB
    daemon.stop()  # and nothing checks it
    request(libvirtd, alias, "384MiB")
    wait_for_memory(libvirtd, before + 350, before + 390)
    daemon.start()
    wait_for("what it can have now", lambda: reserved(roomy_pool) == 576 * MIB)
    wait_for("the end of it", lambda: extents()[alias]["state"] == "ready")
    assert virt_dmem_json("alerts")["alerts"] == []
    assert virt_dmem_json("reconcile")["actions"] == []


def test_memory_plugged_bypassing_virt_dmem_beyond_the_pool_is_charged_and_an_alert(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    """A guest that touches missing memory is killed by SIGBUS: this one does not touch it."""
    start(libvirtd, roomy_pool, grower_image, hotplugged="offline")
    alias = virt_dmem_json("attach", "grower", "--size", "512M", "--type", "virtio-mem")["change"]["alias"]
    virt_dmem("resize", "grower", alias, "--size", "0")
    libvirtd.define(domain_xml("other", memory="768MiB"))
    virt_dmem("apply", "other", "--pool", roomy_pool)
    libvirtd.virsh("start", "--paused", "other")
    request(libvirtd, alias, "128MiB")
    wait_for("it to be charged", lambda: reserved(roomy_pool) == 1088 * MIB)
    (alert,) = wait_for("the alert", lambda: virt_dmem_json("alerts")["alerts"])
    assert alert["code"] == "pool-short-of-reservations"
    assert "has 1 GiB, and domains hold 1.1 GiB" in alert["message"]
    assert virt_dmem_json("resize", "grower", alias, "--size", "0")["change"]["state"] == "resized"
    assert reserved(roomy_pool) == 960 * MIB
    wait_for("the end of the alert", lambda: not virt_dmem_json("alerts")["alerts"])


@pytest.mark.parametrize("while_the_daemon", ["runs", "is down"])
def test_memory_of_a_pool_that_virsh_attached_is_adopted_and_can_be_detached(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage, while_the_daemon: str
) -> None:
    """Do manually, with virsh, what attach does: a file in the pool, a link to it, the device."""
    uuid = start(libvirtd, roomy_pool, grower_image)
    if while_the_daemon == "is down":
        daemon.stop()
    file = Path(f"/run/virt-dmem/pools/{roomy_pool}/libvirt-{uuid}/ua-byhand")
    device = """<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target>
                <alias name='ua-byhand'/></memory>"""
    (directory,) = Path("/var/lib/libvirt/qemu/ram").glob("*-grower")
    making = file.parent.with_name("byhand")  # housekeeping does not look there, and would charge half of it
    with making.open("wb") as extent:  # open, so that it is not removed as unused before QEMU has it
        extent.write(bytes(128 * MIB))
        shutil.chown(making, "libvirt-qemu")
        making.rename(file)
        (directory / "ua-byhand").symlink_to(file)
        libvirtd.virsh("attach-device", "grower", "/dev/stdin", "--live", stdin=device)
    if while_the_daemon == "is down":
        daemon.start()
    else:
        wait_for("it to be charged", lambda: reserved(roomy_pool) == 320 * MIB)
    wait_for("it to be the guest's", lambda: "ua-byhand" in extents())
    found = extents()["ua-byhand"]
    assert (found["state"], found["size_bytes"], found["pool"]) == ("ready", 128 * MIB, roomy_pool)
    assert reserved(roomy_pool) == 320 * MIB
    wait_for("no alert", lambda: virt_dmem_json("alerts")["alerts"] == [])
    assert virt_dmem_json("detach", "grower", "ua-byhand")["change"]["state"] == "detached"
    assert reserved(roomy_pool) == 192 * MIB
    assert not file.exists()
    assert links() == []
