# SPDX-License-Identifier: GPL-2.0-or-later
"""Let an attach fail, or its caller disconnect, at any point: it is either completed or fully reverted."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.rig.command import reserved, virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.fake_monitor import FakeMonitor
from tests.rig.grower import MIB, extents, has_mib, links, start, wait_for_memory
from tests.rig.guest import GuestImage
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import wait_for
from virt_dmem.domain_xml.monitor import socket_of

VIRT_DMEM = str(Path(sys.executable).with_name("virt-dmem"))
TAKES_A_MINUTE = "for _ in $(seq 300); do sleep 0.2; done"
"""No test waits for its end; no part of it remains for long once it is killed."""


def test_what_libvirt_refuses_is_rolled_back_whole(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str
) -> None:
    """QEMU cannot bind memory to a node that the host does not have; a tmpfs pool has no nodes."""
    uuid = start(libvirtd, roomy_pool, None)
    for kind in ("dimm", "virtio-mem"):
        said = virt_dmem_fails("attach", "grower", "--size", "64M", "--node", "63", "--type", kind, status=1)
        assert "libvirt failed" in said
    assert reserved(roomy_pool) == 192 * MIB
    files = Path(f"/run/virt-dmem/pools/{roomy_pool}/libvirt-{uuid}").iterdir()
    assert [path.name for path in files] == ["ram-node0"]
    assert links() == []
    assert virt_dmem_json("attach", "grower", "--size", "64M")["change"]["state"] == "attached"


def test_an_attach_interrupted_while_memory_is_populated_is_undone(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, tmp_path: Path
) -> None:
    start(libvirtd, roomy_pool, None)
    daemon.restart_with_helper(tmp_path, TAKES_A_MINUTE)
    command = [VIRT_DMEM, "attach", "grower", "--size", "256M"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as attaching:
        wait_for("the memory to be charged", lambda: reserved(roomy_pool) == 448 * MIB)
        time.sleep(0.3)
        attaching.send_signal(signal.SIGINT)
        assert attaching.wait(60) == 130
    wait_for("it to be freed", lambda: reserved(roomy_pool) == 192 * MIB)
    assert list(extents()) == ["ram-node0"]


def test_a_domain_that_ends_while_memory_is_populated_leaves_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, tmp_path: Path
) -> None:
    start(libvirtd, roomy_pool, None)
    ended = tmp_path / "ended"
    daemon.restart_with_helper(tmp_path, f"while ! [ -e {ended} ]; do sleep 0.1; done")
    command = [VIRT_DMEM, "attach", "grower", "--size", "256M"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as attaching:
        wait_for("the memory to be charged", lambda: reserved(roomy_pool) == 448 * MIB)
        libvirtd.virsh("destroy", "grower")
        ended.touch()
        assert attaching.wait(60) == 1
    wait_for("it to be freed", lambda: reserved(roomy_pool) == 0)
    assert virt_dmem_json("reconcile")["actions"] == []
    assert list(Path(f"/run/virt-dmem/pools/{roomy_pool}").glob("libvirt-*/*")) == []


def test_an_attach_interrupted_after_libvirt_was_asked_is_completed(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str
) -> None:
    start(libvirtd, roomy_pool, None)
    qemu = libvirtd.qemu_pids()["grower"]
    os.kill(qemu, signal.SIGSTOP)  # libvirt waits for its answer
    try:
        command = [VIRT_DMEM, "attach", "grower", "--size", "64M"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as attaching:
            wait_for("libvirt to be asked", lambda: "attaching" in {item["state"] for item in extents().values()})
            time.sleep(0.5)
            attaching.send_signal(signal.SIGINT)
            assert attaching.wait(60) == 130
        assert reserved(roomy_pool) == 256 * MIB
    finally:
        os.kill(qemu, signal.SIGCONT)
    wait_for("it to be attached", lambda: all(item["state"] == "ready" for item in extents().values()))
    (alias,) = set(extents()) - {"ram-node0"}
    assert f"<alias name='{alias}'/>" in libvirtd.virsh("dumpxml", "grower")
    assert links() == []


def backend_of(kind: str, alias: str, size: int) -> dict[str, Any]:
    """Return the answers of a monitor that reports this name for the backend of a device."""
    shown = {
        "id": f"mem{alias}", "size": size, "policy": "default", "host-nodes": [], "prealloc": False, "share": True,
    }  # fmt: skip
    return {"query-memdev": [shown], "qom-get": lambda asked: kind if asked["property"] == "type" else ""}


def test_memory_that_qemu_reports_as_something_else_is_detached_again(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage
) -> None:
    """Let a fake monitor report it: the real QEMU is correct."""
    uuid = start(libvirtd, roomy_pool, grower_image, "--no-monitor")
    before = has_mib(libvirtd)
    with FakeMonitor(socket_of(uuid), "grower", backend_of("memory-backend-ram", "ua-dmem0", 128 * MIB)):
        said = virt_dmem_fails("attach", "grower", "--size", "128M", status=1)
        assert "QEMU reports ua-dmem0 as a memory-backend-ram" in said
        wait_for("it to be taken away", lambda: list(extents()) == ["ram-node0"])
        assert reserved(roomy_pool) == 192 * MIB
        assert "ua-dmem0" not in libvirtd.virsh("dumpxml", "grower")
        wait_for_memory(libvirtd, before - 10, before + 10)
        # and a guest that does not answer keeps it
        libvirtd.virsh("suspend", "grower")
        said = virt_dmem_fails("attach", "grower", "--size", "128M", status=1)
        assert "128 MiB stay charged until the guest unplugs ua-dmem0" in said
        assert reserved(roomy_pool) == 320 * MIB
        libvirtd.virsh("resume", "grower")

        def freed() -> bool:
            """A guest may refuse while it is onlining the memory: then the request is repeated."""
            subprocess.run(
                [VIRT_DMEM, "detach", "grower", "ua-dmem0", "--wait", "3s"], capture_output=True, check=False
            )
            return reserved(roomy_pool) == 192 * MIB

        wait_for("it to be freed", freed, timeout=40)
    assert links() == []


def test_virtio_mem_whose_memory_cannot_be_populated_leaves_nothing_plugged(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, grower_image: GuestImage, tmp_path: Path
) -> None:
    """QEMU before 8.2 cannot unplug the device: then it remains, empty, and can be resized."""
    daemon.restart_with_helper(tmp_path, 'case "$*" in *ua-dmem0*) exit 1;; esac')
    start(libvirtd, roomy_pool, grower_image)
    before = has_mib(libvirtd)
    virt_dmem_fails("attach", "grower", "--size", "256M", "--type", "virtio-mem", status=1)
    assert reserved(roomy_pool) == 192 * MIB
    assert links() == []
    if "ua-dmem0" in libvirtd.virsh("dumpxml", "grower"):
        assert extents()["ua-dmem0"]["state"] == "ready"
        daemon.config = ""
        daemon.restart()
        change = virt_dmem_json("resize", "grower", "ua-dmem0", "--size", "256M")["change"]
        assert change["state"] == "resized"
        wait_for_memory(libvirtd, before + 230, before + 260)
    else:
        assert list(extents()) == ["ram-node0"]


def test_progress_is_shown_on_a_terminal(
    libvirtd: PrivateLibvirt, daemon: Daemon, roomy_pool: str, tmp_path: Path
) -> None:
    daemon.restart_with_helper(tmp_path, "sleep 1")
    start(libvirtd, roomy_pool, None)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [VIRT_DMEM, "attach", "grower", "--size", "256M"], stdout=subprocess.PIPE, stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    ) as attaching:  # fmt: skip
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while chunk := os.read(ours, 65536):
                shown += chunk
        assert attaching.wait(60) == 0
    os.close(ours)
    assert b"prefaulting ua-dmem0" in shown
    assert b"MiB" in shown


def test_a_memory_backing_dir_that_was_changed_since_is_the_reason_that_is_given(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("moved", cells=["64MiB"], max_memory="256MiB"))
    virt_dmem("apply", "moved", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "moved")
    before = libvirtd.qemu_conf
    libvirtd.qemu_conf += 'memory_backing_dir = "/run/libvirt/elsewhere"\n'
    try:
        libvirtd.restart()
        said = virt_dmem_fails("attach", "moved", "--size", "64M", status=1)
        assert "was started with its memory files in /var/lib/libvirt/qemu/ram/" in said
        assert "is /run/libvirt/elsewhere now" in said
    finally:
        libvirtd.qemu_conf = before
        libvirtd.restart()
    assert virt_dmem_json("attach", "moved", "--size", "64M")["change"]["state"] == "attached"
