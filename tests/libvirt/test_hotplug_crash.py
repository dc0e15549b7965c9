# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill the daemon between any two steps of an attach, a detach, a resize: nothing leaks, the guest runs on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.command import ask, reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.grower import MIB, MODULES
from tests.rig.guest import guest_image
from tests.rig.killed_daemon import killed_before_every_step, left_in
from tests.rig.pools import create_pool
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for

pytestmark = pytest.mark.boots_guest

VIRT_DMEM = str(Path(sys.executable).with_name("virt-dmem"))


def start(libvirtd: PrivateLibvirt, pool: str) -> str:
    """Start ``crash``: a guest of 192 MiB that releases memory on request, and may grow to 1 GiB."""
    image = guest_image(modules=MODULES)
    cmdline = "memhp_default_state=online_movable"
    libvirtd.define(domain_xml("crash", memory="192MiB", image=image, cmdline=cmdline))
    virt_dmem("apply", "crash", "--pool", pool, "--hotplug-max", "1G")
    libvirtd.virsh("start", "crash")
    wait_for("the guest", lambda: "uptime:" in libvirtd.console("crash"), timeout=120)
    return "crash"


@pytest.fixture
def guest(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> str:
    """Start the guest in the pool of 256 MiB."""
    return start(libvirtd, tmpfs_pool)


@pytest.fixture
def large_pool(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[str]:
    """Create the pool ``large``: 512 MiB of tmpfs. Linux plugs virtio-mem in units of at least 128 MiB."""
    create_pool("large", "512M")
    yield "large"
    if not daemon.program.running:
        daemon.start()
    libvirtd.remove()
    virt_dmem("reconcile")
    virt_dmem("pool", "destroy", "large")


def run(*args: str) -> None:
    """Run the command, whose daemon may be killed."""
    subprocess.run([VIRT_DMEM, *args], capture_output=True, check=False, timeout=300)


def devices(libvirtd: PrivateLibvirt) -> list[str]:
    live = libvirtd.virsh("dumpxml", "crash")
    return re.findall(r"<alias name='(ua-dmem\d+)'", live)


def settled(guest: str) -> bool:
    """Verify that no change is in progress."""
    return all(extent["state"] == "ready" for extent in ask("ShowDomain", domain=guest)["domain"]["extents"])


class Uptimes:
    """Return whether the guest made progress since the last call: it prints its uptime every second."""

    def __init__(self, libvirtd: PrivateLibvirt) -> None:
        self._libvirtd = libvirtd
        self._seen = 0

    def _said(self) -> int:
        return self._libvirtd.console("crash").count("uptime:")

    def go_on(self) -> None:
        """Wait until the guest makes progress."""
        wait_for("the guest to go on", lambda: self._said() > self._seen)
        self._seen = self._said()


def require_in_order(libvirtd: PrivateLibvirt, pool: str) -> None:
    """Verify that exactly the memory that libvirt reports for the guest is charged and exists, and that it runs."""
    assert libvirtd.state("crash") == "running"

    def in_order() -> bool:
        aliases = ["ram-node0", *devices(libvirtd)]
        shown = ask("ShowDomain", domain="crash")["domain"]["extents"]
        names = sorted(path.name for path in left_in(pool) if not path.is_dir())
        return (
            sorted(extent["alias"] for extent in shown) == sorted(aliases) == names
            and all(extent["state"] == "ready" for extent in shown)
            and reserved(pool) == 192 * MIB + 64 * MIB * (len(aliases) - 1)
        )

    wait_for("everything to be in order", in_order)


def test_a_daemon_killed_between_any_two_steps_of_an_attach_leaks_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path, guest: str
) -> None:
    uptimes = Uptimes(libvirtd)

    def restore() -> None:
        require_in_order(libvirtd, tmpfs_pool)
        uptimes.go_on()
        for alias in devices(libvirtd):
            assert virt_dmem_json("detach", guest, alias)["change"]["state"] == "detached"

    steps = killed_before_every_step(
        daemon,
        tmp_path / "mark",
        lambda: run("attach", guest, "--size", "64M"),
        restore,
        last="answer to attach",
        also=("os.symlink", "before libvirt's attach", "after libvirt's attach"),
    )
    print(f"{len(steps)} steps: {steps}")
    assert any("symlink" in step for step in steps)
    assert "before libvirt's attach" in steps
    assert "after libvirt's attach" in steps
    assert "answer to attach" in steps


def test_a_daemon_killed_between_any_two_steps_of_a_detach_leaks_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path, guest: str
) -> None:
    def attach() -> str:
        return str(virt_dmem_json("attach", guest, "--size", "64M")["change"]["alias"])

    aliases = [attach()]
    uptimes = Uptimes(libvirtd)

    def restore() -> None:
        # a detach that was not requested from libvirt stays pending until it is repeated
        assert libvirtd.state("crash") == "running"
        if devices(libvirtd) and not settled(guest):
            virt_dmem("detach", guest, aliases[-1])
        require_in_order(libvirtd, tmpfs_pool)
        uptimes.go_on()
        if not devices(libvirtd):
            aliases.append(attach())

    steps = killed_before_every_step(
        daemon,
        tmp_path / "mark",
        lambda: run("detach", guest, aliases[-1]),
        restore,
        last="answer to detach",
        also=("before libvirt's detach", "after libvirt's detach"),
    )
    print(f"{len(steps)} steps: {steps}")
    assert "before libvirt's detach" in steps
    assert "after libvirt's detach" in steps
    assert "answer to detach" in steps


def test_a_daemon_killed_between_any_two_steps_of_a_resize_charges_never_less_than_the_guest_has(
    libvirtd: PrivateLibvirt, daemon: Daemon, large_pool: str, tmp_path: Path
) -> None:
    guest = start(libvirtd, large_pool)
    attached = virt_dmem_json("attach", guest, "--size", "128M", "--type", "virtio-mem")["change"]
    assert attached["state"] == "attached"
    alias = attached["alias"]

    def plugged() -> int:
        found = re.search(r"<current unit='KiB'>(\d+)", libvirtd.virsh("dumpxml", guest))
        return int(found[1]) * 1024 if found else 0

    def resize(size: str) -> None:
        assert virt_dmem_json("resize", guest, alias, "--size", size)["change"]["state"] == "resized"

    def restore() -> None:
        wait_for("the resize to be settled", lambda: settled(guest))
        assert reserved(large_pool) >= 192 * MIB + plugged()
        assert libvirtd.state(guest) == "running"
        uptimes.go_on()
        resize("128M")  # QEMU does not release memory that was populated and never plugged
        resize("0")
        assert reserved(large_pool) == 192 * MIB

    uptimes = Uptimes(libvirtd)
    restore()
    steps = killed_before_every_step(
        daemon,
        tmp_path / "mark",
        lambda: run("resize", guest, alias, "--size", "128M"),
        restore,
        last="answer to resize",
        also=("before libvirt's update", "after libvirt's update"),
    )
    print(f"{len(steps)} steps: {steps}")
    assert "before libvirt's update" in steps
    assert "after libvirt's update" in steps
    assert "answer to resize" in steps


def test_a_dimm_whose_ledger_was_lost_is_found_charged_again_and_detached(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, guest: str
) -> None:
    alias = virt_dmem_json("attach", guest, "--size", "32M")["change"]["alias"]
    before = virt_dmem_json("show", guest)["domain"]["extents"]
    daemon.kill()
    for file in Path("/var/lib/virt-dmem").glob("ledger.sqlite*"):
        file.unlink()
    daemon.start()
    assert virt_dmem_json("show", guest)["domain"]["extents"] == before
    assert virt_dmem_json("alerts")["alerts"] == []
    assert virt_dmem_json("detach", guest, alias)["change"]["state"] == "detached"
    assert reserved(tmpfs_pool) == 192 * MIB
