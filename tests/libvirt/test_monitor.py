# SPDX-License-Identifier: GPL-2.0-or-later
"""Use QEMU's second monitor: its answers are shown, its events are handled, and nothing waits for it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.fake_monitor import FakeMonitor
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import wait_for
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.native.programs import HELPER

MIB = 1 << 20


def start(libvirtd: PrivateLibvirt, pool: str, *args: str) -> str:
    uuid = libvirtd.define(domain_xml("talks", memory="64MiB"))
    virt_dmem("apply", "talks", "--pool", pool, *args)
    libvirtd.virsh("start", "--paused", "talks")
    return uuid


def shown() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = virt_dmem_json("show", "talks")["domain"]["backends"]
    return found


def reserved(pool: str) -> int:
    return int(virt_dmem_json("pool", "show", pool)["pool"]["reserved_bytes"])


FAILURE = {
    "event": "MEMORY_FAILURE",
    "data": {"recipient": "guest", "action": "inject", "flags": {"action-required": False, "recursive": False}},
    "timestamp": {"seconds": 1, "microseconds": 0},
}
"""A hardware memory failure cannot be produced in a test."""


def test_show_tells_what_qemu_says_also_after_the_daemon_began_anew(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool)
    for _ in range(2):
        (backend,) = wait_for("QEMU's answer", shown)
        assert (backend["id"], backend["kind"]) == ("pc.ram", "memory-backend-file")
        assert backend["path"].endswith("/pc.ram")
        assert (backend["size_bytes"], backend["shared"], backend["preallocated"]) == (64 * MIB, True, False)
        assert backend["policy"] == "default"
        assert "memory-backend-file" in virt_dmem("show", "talks")
        daemon.restart()
    assert socket_of(uuid).stat().st_uid == 0, "no other QEMU may connect to it"
    assert "custom-argv" in (Path("/var/log/libvirt/qemu/talks.log")).read_text()


def test_events_of_qemu_reach_the_daemon(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    """Receive real events of a real QEMU, beside those on libvirt's own monitor."""
    start(libvirtd, tmpfs_pool)
    wait_for("QEMU's answer", shown)
    libvirtd.virsh("resume", "talks")
    wait_for("RESUME", lambda: "QEMU event RESUME" in daemon.log.read_text())
    libvirtd.virsh("qemu-monitor-command", "talks", '{"execute": "quit"}', check=False)  # may go before it answers
    wait_for("SHUTDOWN", lambda: "QEMU event SHUTDOWN" in daemon.log.read_text())
    wait_for("it to be freed", lambda: reserved(tmpfs_pool) == 0)


def test_a_monitor_that_disconnects_is_connected_to_again(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    with FakeMonitor(socket_of(uuid), "talks") as monitor:
        monitor.disconnect()
        wait_for("another connection", lambda: monitor.connections == 2)
        monitor.send(FAILURE)
        wait_for("the alert", lambda: virt_dmem_json("alerts")["alerts"])


def test_another_guest_that_poses_as_a_monitor_is_not_listened_to(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    """All QEMUs share a user: any of them may replace another's socket by its own."""
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_of(uuid)))
        listener.listen()
        wait_for("its rejection", lambda: "its QEMU is process" in daemon.log.read_text())
        listener.settimeout(60)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(60)
            assert peer.recv(1) == b"", "nothing is asked there"
    socket_of(uuid).unlink()
    assert virt_dmem_json("alerts")["alerts"] == []


def test_a_qemu_that_sends_too_much_is_disconnected_and_nothing_waits_for_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    before = daemon.log.stat().st_size
    with FakeMonitor(socket_of(uuid), "talks") as monitor:
        monitor.flood(FAILURE)
        (alert,) = wait_for("the alert", lambda: virt_dmem_json("alerts")["alerts"])
        assert alert["code"] == "memory-failed"
        wait_for("another connection", lambda: monitor.connections == 2)
    assert daemon.log.read_text().count("memory of domain talks failed") == 1
    assert daemon.log.stat().st_size - before < 10_000


def test_a_domain_without_a_monitor_is_shown_without_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    time.sleep(1.5)
    assert shown() == []
    assert not socket_of(uuid).exists()
    assert "tainted" not in Path("/var/log/libvirt/qemu/talks.log").read_text()


def test_nothing_waits_for_a_qemu_that_does_not_answer(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    start(libvirtd, tmpfs_pool)
    wait_for("QEMU's answer", shown)
    pid = libvirtd.qemu_pids()["talks"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert shown() == []
        assert time.monotonic() - began < 30
        libvirtd.define(domain_xml("second", memory="64MiB"))
        virt_dmem("apply", "second", "--pool", tmpfs_pool)
        daemon.restart()
        libvirtd.virsh("start", "--paused", "second")
        assert reserved(tmpfs_pool) == 128 * MIB
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("QEMU's answer", shown)


def test_memory_that_failed_is_reported_by_name_and_read_before_another_domain_gets_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    with FakeMonitor(socket_of(uuid), "talks") as monitor:
        monitor.send(FAILURE)
        alerts = wait_for("the alert", lambda: virt_dmem_json("alerts")["alerts"])
    assert [alert["code"] for alert in alerts] == ["memory-failed"]
    assert "domain talks failed (guest inject)" in alerts[0]["message"]
    daemon.restart()
    assert len(virt_dmem_json("alerts")["alerts"]) == 1, "also after a restart"
    libvirtd.virsh("destroy", "talks")
    assert reserved(tmpfs_pool) == 0
    assert virt_dmem_json("alerts")["alerts"] == []


def test_memory_that_failed_and_cannot_be_read_stays_quarantined(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    uuid = start(libvirtd, tmpfs_pool, "--no-monitor")
    helper = tmp_path / "helper"
    helper.write_text(f'#!/bin/sh\ncase "$*" in *scrub*) exit 1;; esac\nexec {HELPER} "$@"\n')
    helper.chmod(0o755)
    daemon.config = f'[prefault]\nhelper = "{helper}"\n'
    daemon.restart()
    with FakeMonitor(socket_of(uuid), "talks") as monitor:
        monitor.send(FAILURE)
        wait_for("the alert", lambda: virt_dmem_json("alerts")["alerts"])
    libvirtd.virsh("destroy", "talks")
    assert reserved(tmpfs_pool) == 64 * MIB
    assert not virt_dmem_json("list")["domains"]
    time.sleep(6)  # housekeeping does not release it
    assert reserved(tmpfs_pool) == 64 * MIB
    assert {alert["code"] for alert in virt_dmem_json("alerts")["alerts"]} == {
        "memory-failed",
        "extent-quarantined",
    }
    daemon.config = ""
    daemon.restart()  # with a helper that can read it
    assert reserved(tmpfs_pool) == 0


def test_the_socket_of_a_qemu_that_was_killed_is_removed(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool)
    os.kill(libvirtd.qemu_pids()["talks"], signal.SIGKILL)
    wait_for("its release", lambda: reserved(tmpfs_pool) == 0)
    wait_for("its monitor to be gone", lambda: not os.path.lexists(socket_of(uuid)))


def test_the_socket_that_nobody_was_there_to_remove_is_removed_later(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = start(libvirtd, tmpfs_pool)
    daemon.stop()
    os.kill(libvirtd.qemu_pids()["talks"], signal.SIGKILL)
    wait_for("libvirt to see it", lambda: libvirtd.state("talks") == "shut off")
    assert os.path.lexists(socket_of(uuid)), "QEMU leaves it"
    libvirtd.virsh("undefine", "talks")
    daemon.start()
    virt_dmem("reconcile")
    wait_for("its monitor to be gone", lambda: not os.path.lexists(socket_of(uuid)))


def test_a_start_that_is_rolled_back_leaves_no_socket(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = libvirtd.define(domain_xml("talks", memory="64MiB"))
    virt_dmem("apply", "talks", "--pool", tmpfs_pool)
    pid = daemon.pid
    libvirtd.install_hook(HOOK)
    hook = Path("/etc/libvirt/hooks/qemu.d/50-virt-dmem")
    hook.write_text(hook.read_text().replace('case "$2" in', '[ "$2" != started ] || exit 1\ncase "$2" in', 1))
    try:
        libvirtd.virsh("start", "--paused", "talks", check=False)
    finally:
        libvirtd.install_hook(HOOK)
    assert libvirtd.state("talks") == "shut off"
    assert daemon.pid == pid
    wait_for("its release", lambda: reserved(tmpfs_pool) == 0)
    assert not os.path.lexists(socket_of(uuid))
