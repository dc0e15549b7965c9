# SPDX-License-Identifier: GPL-2.0-or-later
"""Others change domain, state file and pool under a parked guest: it is not harmed, and what is wrong is told."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for
from tests.rig.real_pools import MIB

PATTERN = b"this was here before " * 1000


def memory(pool: str, uuid: str) -> Path:
    return Path(f"/run/virt-dmem/pools/{pool}/libvirt-{uuid}/pc.ram")


def write_pattern(pool: str, uuid: str) -> None:
    with memory(pool, uuid).open("r+b") as file:
        file.seek(32 * MIB)
        file.write(PATTERN)


@pytest.fixture
def parked(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> str:
    """Park the domain ``guest``, with a pattern in its memory; return its UUID."""
    uuid = libvirtd.define(domain_xml("guest"))
    virt_dmem("apply", "guest", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "guest")
    write_pattern(tmpfs_pool, uuid)
    virt_dmem("park", "guest")
    return uuid


def goes_on(libvirtd: PrivateLibvirt, pool: str, uuid: str) -> None:
    assert "guest is paused" in virt_dmem("unpark", uuid)
    assert PATTERN in memory(pool, uuid).read_bytes()
    libvirtd.virsh("destroy", uuid)


def fails(*args: str) -> str:
    with pytest.raises(RigError) as failure:
        virt_dmem(*args)
    return str(failure.value)


def alert(code: str) -> dict[str, Any] | None:
    return next((found for found in virt_dmem_json("alerts")["alerts"] if found["code"] == code), None)


def test_a_domain_that_was_defined_anew_with_ordinary_memory_does_not_start(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, parked: str
) -> None:
    libvirtd.virsh("undefine", "guest")
    libvirtd.define(domain_xml("guest", uuid=parked))
    with pytest.raises(RigError, match="is parked: its memory is kept"):  # it would write to the same disks
        libvirtd.virsh("start", "--paused", "guest")
    goes_on(libvirtd, tmpfs_pool, parked)
    libvirtd.virsh("start", "--paused", "guest")


def test_one_that_was_renamed_is_told_how_it_can_go_on(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, parked: str
) -> None:
    libvirtd.virsh("domrename", "guest", "other")
    assert "renamed while it was parked, to other" in (said := fails("unpark", parked))
    assert f"Run 'virsh domrename {parked} guest'" in said
    libvirtd.virsh("domrename", parked, "guest")
    goes_on(libvirtd, tmpfs_pool, parked)


def test_a_state_file_that_somebody_removes_is_told_of_until_it_is_back(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, parked: str
) -> None:
    file, away = STATE / f"parked/{parked}.state", STATE / "away"
    file.rename(away)
    found = wait_for("the alert", lambda: alert("parked-guest-lost"))
    assert found["subject"] == parked
    assert f"its state file {file} is gone" in found["message"]
    away.rename(file)
    wait_for("its end", lambda: alert("parked-guest-lost") is None)
    goes_on(libvirtd, tmpfs_pool, parked)


def test_memory_that_cannot_be_reached_is_not_called_lost_and_lost_memory_is(
    libvirtd: PrivateLibvirt, tmpfs_pool: str, parked: str
) -> None:
    mount = f"/run/virt-dmem/pools/{tmpfs_pool}"
    subprocess.run(["mount", "-t", "tmpfs", "somebody", mount], check=True)
    wait_for("the alert of the pool", lambda: alert("pool-mount-changed"))
    assert alert("parked-guest-lost") is None
    assert "is covered by somebody (tmpfs)" in fails("unpark", "guest")
    subprocess.run(["umount", mount], check=True)
    subprocess.run(["umount", mount], check=True)
    assert "is not mounted any more" in fails("unpark", "guest")
    virt_dmem("pool", "mount", tmpfs_pool)
    found = wait_for("the alert", lambda: alert("parked-guest-lost"))
    assert f"its memory {memory(tmpfs_pool, parked)} is gone" in found["message"]
    said = fails("unpark", "guest")
    assert "its memory is lost" in said
    assert f"virt-dmem unpark --discard {parked}" in said
    virt_dmem("unpark", "--discard", "guest")
    wait_for("its end", lambda: alert("parked-guest-lost") is None)
    libvirtd.virsh("start", "--paused", "guest")


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_guest_whose_file_somebody_removed_is_not_parked_and_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, how: str
) -> None:
    uuid = libvirtd.define(domain_xml("guest"))
    virt_dmem("apply", "guest", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "guest")
    write_pattern(tmpfs_pool, uuid)
    file, away = memory(tmpfs_pool, uuid), Path(f"/run/virt-dmem/pools/{tmpfs_pool}/away")
    file.rename(away)
    if how == "replaced":
        file.write_bytes(bytes(64 * MIB))
    assert ("was removed" if how == "removed" else "maps 0 B of the 64 MiB") in fails("park", "guest")
    assert libvirtd.state("guest") == "paused"
    if how == "removed":
        found = wait_for("the alert", lambda: alert("reconcile-failed"))
        assert f"The file {file} of running domain guest was removed" in found["message"]
    away.rename(file)
    wait_for("its end", lambda: alert("reconcile-failed") is None)
    virt_dmem("park", "guest")
    goes_on(libvirtd, tmpfs_pool, uuid)
