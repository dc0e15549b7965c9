# SPDX-License-Identifier: GPL-2.0-or-later
"""Obstruct virt-dmem as QEMU's user can, and verify what that does not achieve."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Daemon, PrivateLibvirt, domain_xml
from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.hostile_user import USER, a_leaseholder, hostile_names
from tests.rig.processes import wait_for

ANSWER_SECONDS = 30
"""A lease is broken after 45 s."""


def reserved(pool: str) -> int:
    began = time.monotonic()
    found = int(virt_dmem_json("pool", "show", pool)["pool"]["reserved_bytes"])
    assert time.monotonic() - began < ANSWER_SECONDS
    return found


def test_a_lease_on_an_extent_keeps_nobody_waiting_and_the_extent_from_the_next_domain(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = libvirtd.define(domain_xml("leased", memory="64MiB"))
    virt_dmem("apply", "leased", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "leased")
    (extent,) = Path(f"/run/virt-dmem/pools/{tmpfs_pool}/libvirt-{uuid}").iterdir()
    pid = libvirtd.qemu_pids()["leased"]
    libvirtd.kill()
    os.kill(pid, signal.SIGKILL)
    wait_for("QEMU's end", lambda: not Path(f"/proc/{pid}/maps").exists() or not libvirtd.qemu_pids())
    os.chown(extent, USER, USER)  # as from start to started
    with a_leaseholder(extent, "read"):
        libvirtd.start()  # which calls the hooks of ended domains
        wait_for("the release", lambda: not virt_dmem_json("list")["domains"])
        assert reserved(tmpfs_pool) == 64 << 20
        assert {alert["code"] for alert in virt_dmem_json("alerts")["alerts"]} == {"extent-quarantined"}
        assert extent.stat().st_uid == 0
        daemon.restart()
        assert reserved(tmpfs_pool) == 64 << 20
    wait_for("it to be free", lambda: reserved(tmpfs_pool) == 0)


@pytest.fixture
def crowded(libvirtd: PrivateLibvirt, tmpfs_pool: str) -> Iterator[Path]:
    """Fill QEMU's directories, for one test, with entries that its user may create."""
    ours = Path("/var/lib/libvirt/qemu")
    evil = ours / "ram" / "99-evil"
    evil.mkdir()
    os.chown(evil, pwd.getpwnam("libvirt-qemu").pw_uid, -1)
    made = [path for directory in (ours, ours / "ram") for path in hostile_names(directory)]
    hostile_names(evil)
    for number in range(10_000):
        (evil / str(number)).symlink_to(f"/run/virt-dmem/pools/{tmpfs_pool}/libvirt-gone/{number}")
    yield ours
    shutil.rmtree(evil)
    for path in made:
        path.rmdir() if path.name == "a-directory" else path.unlink()


def test_whatever_qemus_user_puts_in_its_directories_the_daemon_starts_and_guests_do(
    libvirtd: PrivateLibvirt, daemon: Daemon, crowded: Path, tmpfs_pool: str
) -> None:
    daemon.restart()
    libvirtd.define(domain_xml("among", memory="64MiB"))
    virt_dmem("apply", "among", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "among")
    assert virt_dmem_json("show", "among")["domain"]["phase"] == "running"
    assert isinstance(virt_dmem_json("reconcile")["actions"], list)
    libvirtd.virsh("destroy", "among")
    assert reserved(tmpfs_pool) == 0
    assert (crowded / "ram" / "loop").is_symlink()
    assert "not all are scanned" in daemon.log.read_text()
