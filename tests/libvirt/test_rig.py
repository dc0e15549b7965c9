# SPDX-License-Identifier: GPL-2.0-or-later
"""Test the rig itself, which the other tests rely on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig import Daemon, GuestImage, RigError, domain_xml, wait_for
from virt_dmem.units import MIB

if TYPE_CHECKING:
    from tests.rig import PrivateLibvirt

_PARENTS = ("/etc", "/etc/libvirt", "/run", "/run/libvirt", "/var/lib", "/var/lib/libvirt", "/tmp")

_RUN_OF_ITS_OWN = """
import signal
from tests.rig import PrivateLibvirt, domain_xml, enter_private_namespace
enter_private_namespace()
with PrivateLibvirt(hook=None) as libvirtd:
    libvirtd.define(domain_xml("left-behind"))
    libvirtd.virsh("start", "left-behind", "--paused")
    print(libvirtd.libvirtd.pid, *libvirtd.qemu_pids().values(), flush=True)
    signal.pause()
"""

_TELLING_HOOK = """#!/bin/sh
echo "$1 $2" >>/run/libvirt/hook-calls
"""


def _what_is_there() -> dict[str, set[str]]:
    """Return the names of the rig in all directories that another run of it could write to."""
    found = {name: Path(name) for name in _PARENTS if Path(name).exists()}
    ours = ("libvirt", "virt", "qemu", "hooks", "left-behind")
    return {
        name: {entry.name for entry in path.iterdir() if entry.name.startswith(ours)}
        for name, path in found.items()
    }


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_guest_boots_and_sees_its_memory(libvirtd: PrivateLibvirt, image: GuestImage) -> None:
    libvirtd.define(domain_xml("boots", cells=["128MiB", "128MiB"], image=image, cmdline="dmem=here"))
    libvirtd.virsh("start", "boots")
    wait_for("the guest's first uptime line", lambda: "uptime: " in libvirtd.console("boots"), timeout=60)
    lines = libvirtd.console("boots").splitlines()
    total_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    assert 200 * MIB < total_kib * 1024 < 256 * MIB
    assert "cmdline: console=ttyS0 quiet panic=-1 no_timer_check dmem=here" in lines


def test_a_domain_name_may_be_hostile(libvirtd: PrivateLibvirt) -> None:
    uuid = libvirtd.define(domain_xml("-x <&'\"> ü"))
    libvirtd.virsh("start", uuid, "--paused")
    assert libvirtd.state(uuid) == "paused"


def test_guests_survive_a_killed_libvirtd(libvirtd: PrivateLibvirt) -> None:
    libvirtd.define(domain_xml("survives"))
    libvirtd.virsh("start", "survives", "--paused")
    before = libvirtd.qemu_pids()
    libvirtd.kill()
    libvirtd.start()
    assert libvirtd.state("survives") == "paused"
    assert libvirtd.qemu_pids() == before


def test_libvirtd_runs_the_given_hook(libvirtd: PrivateLibvirt, tmp_path: Path) -> None:
    hook, calls = tmp_path / "hook", Path("/run/libvirt/hook-calls")
    hook.write_text(_TELLING_HOOK)
    former = libvirtd.hook
    try:
        libvirtd.hook = hook
        libvirtd.restart()
        libvirtd.define(domain_xml("hooked"))
        libvirtd.virsh("start", "hooked", "--paused")
        libvirtd.virsh("destroy", "hooked")
        wait_for("the last hook", lambda: "release" in calls.read_text())
    finally:
        libvirtd.remove_hook()
        libvirtd.hook = former
        libvirtd.restart()
    assert calls.read_text().split() == [
        word for phase in ("prepare", "start", "started", "stopped", "release") for word in ("hooked", phase)
    ]


def test_a_run_leaves_no_trace_outside_its_namespace_even_when_it_is_killed() -> None:
    before = _what_is_there()
    with subprocess.Popen([sys.executable, "-c", _RUN_OF_ITS_OWN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids = [int(word) for word in run.stdout.readline().split()]
        assert len(pids) == 2
        assert all(_runs(pid) for pid in pids)
        assert _what_is_there() == before
        run.send_signal(signal.SIGKILL)
    wait_for("the guardian to end them", lambda: not any(_runs(pid) for pid in pids))
    assert _what_is_there() == before


@pytest.mark.usefixtures("rig")
def test_a_daemon_that_does_not_come_up_fails_with_its_log() -> None:
    daemon = Daemon("no_such_key = 1\n")
    try:
        with pytest.raises(RigError, match=r"(?s)virt-dmemd does not run.*no_such_key"):
            daemon.start()
    finally:
        daemon.stop()
        daemon.wipe()
