# SPDX-License-Identifier: GPL-2.0-or-later
"""Others change the host under a running virt-dmemd: it notices, puts right what can be, and tells."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import checked, virt_dmem, virt_dmem_json
from tests.rig.daemon import STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage, guest_image
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for
from tests.rig.real_pools import HUGE, HVO, lose, lower, no_spare_pages
from virt_dmem.host import huge_pages, numa
from virt_dmem.pools.record import PoolRecord

MIB = 1 << 20

# Fills its memory and frees it again, for ever: the kernel reports what was free for two seconds, beyond 64 MiB.
SCRIPT = """
round=0
while :; do
    available=$(sed -n 's/MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
    dd if=/dev/zero of=/tmp/fill bs=1M count=$((available / 1024 - 24)) 2>/dev/null
    rm /tmp/fill
    round=$((round + 1))
    echo "round $round"
    sleep 4
done
"""


@pytest.fixture(scope="module")
def breathing(rig: None) -> GuestImage:
    modules = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"]
    return guest_image(SCRIPT, modules=[*modules, "virtio_balloon"])


def alerts(code: str) -> list[dict[str, Any]]:
    return [alert for alert in virt_dmem_json("alerts")["alerts"] if alert["code"] == code]


def persistent() -> int:
    return huge_pages.counters(HUGE, numa.nodes()[0].node).persistent


@pytest.fixture
def pages_back(exclusive_hugepages: None) -> Iterator[None]:
    """Restore the number of huge pages after the test."""
    before = persistent()
    with no_spare_pages():
        yield
    if persistent() != before:
        huge_pages.set_persistent(HUGE, numa.nodes()[0].node, before)


@pytest.mark.needs_hugepages
def test_the_number_of_huge_pages_is_raised_again_at_once_and_a_guest_that_gave_pages_back_lives(
    pages_back: None, libvirtd: PrivateLibvirt, daemon: Daemon, breathing: GuestImage
) -> None:
    virt_dmem("pool", "create", "huge", "--size", "192M")
    balloon = "<memballoon model='virtio' freePageReporting='on'/>"
    uuid = libvirtd.define(domain_xml("breather", memory="192MiB", image=breathing, devices=balloon))
    virt_dmem("apply", "breather", "--pool", "huge")
    libvirtd.virsh("start", "breather")
    extent = Path(f"/run/virt-dmem/pools/huge/libvirt-{uuid}/pc.ram")
    wait_for("free pages to be reported", lambda: extent.stat().st_blocks * 512 < 144 * MIB, timeout=60)
    now = persistent()

    def rounds() -> int:
        return len(re.findall(r"round \d", libvirtd.console("breather")))

    for _ in range(3):
        before = rounds()
        lower(96)
        wait_for("the number to be back", lambda: persistent() == now, timeout=10)
        wait_for("the guest to use its memory twice", lambda before=before: rounds() >= before + 2, timeout=90)
    assert libvirtd.state("breather") == "running"
    (alert,) = alerts("huge-pages-lowered")
    assert "pool huge took 96" in alert["message"]
    assert "virt-dmemd put that right" in alert["message"]
    assert "alert huge-pages-lowered" in tail(daemon.log)
    check = checked()["alerts"]
    assert "huge-pages-lowered" in check["message"]
    libvirtd.remove()
    virt_dmem("pool", "destroy", "huge")


def test_a_pool_that_is_covered_gives_no_memory_and_the_command_is_told(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    mount = f"/run/virt-dmem/pools/{tmpfs_pool}"
    libvirtd.define(domain_xml("small", memory="32MiB"))
    virt_dmem("apply", "small", "--pool", tmpfs_pool)
    subprocess.run(["mount", "-t", "tmpfs", "somebody", mount], check=True)
    (alert,) = wait_for("the alert", lambda: alerts("pool-mount-changed"))
    assert f"is covered by somebody (tmpfs) at {mount}" in alert["message"]
    assert alert["hint"] == f"Run 'umount {mount}'."
    assert checked()["host-unchanged"]["status"] == "FAIL"
    with pytest.raises(RigError, match="is covered by somebody"):
        libvirtd.virsh("start", "--paused", "small")
    subprocess.run(["umount", mount], check=True)
    Path(mount).chmod(0o700)
    wait_for("the mode to be restored", lambda: Path(mount).stat().st_mode & 0o7777 == 0o711)
    libvirtd.virsh("start", "--paused", "small")


def test_a_directory_above_a_pool_that_is_closed_is_opened_and_a_pool_without_a_record_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("small", memory="32MiB"))
    virt_dmem("apply", "small", "--pool", tmpfs_pool)
    pools = Path("/run/virt-dmem/pools")
    pools.chmod(0o700)
    wait_for("it to be open", lambda: pools.stat().st_mode & 0o001)
    (alert,) = alerts("pool-mount-changed")
    assert "cannot be reached by QEMU's user" in alert["message"]
    libvirtd.virsh("start", "--paused", "small")
    record, away = STATE / f"pools/{tmpfs_pool}.json", STATE / "away"
    record.rename(away)
    try:
        gone = wait_for(
            "the alert",
            lambda: [one for one in alerts("pool-mount-changed") if "no record of it" in one["message"]],
        )
        assert gone[0]["subject"] == tmpfs_pool
        assert "there is no record of it" in checked()["host-unchanged"]["message"]
    finally:
        away.rename(record)
    assert libvirtd.state("small") == "paused"


def test_a_changed_qemu_conf_is_told_of_until_libvirtd_is_restarted(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    path = Path("/etc/libvirt/qemu.conf")
    before = path.read_text()
    try:
        time.sleep(2.5)  # libvirtd's start is known to two seconds
        path.write_text(f'{before}memory_backing_dir = "/run/elsewhere"\n')
        (alert,) = wait_for("the alert", lambda: alerts("libvirt-settings-changed"))
        assert "memory_backing_dir = its default" in alert["message"] or "was changed after" in alert["message"]
    finally:
        path.write_text(before)
    libvirtd.restart()
    wait_for("the end of the alert", lambda: not alerts("libvirt-settings-changed"))


def test_libvirtd_that_is_restarted_with_other_settings_is_told_of_while_a_guest_began_with_the_former_ones(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("small", memory="32MiB"))
    virt_dmem("apply", "small", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "small")
    before = libvirtd.qemu_conf
    try:
        libvirtd.qemu_conf += 'memory_backing_dir = "/run/elsewhere"\n'
        libvirtd.restart()
        alert = wait_for(
            "the alert",
            lambda: [one for one in alerts("libvirt-settings-changed") if "was restarted" in one["message"]],
        )[0]
        assert "memory_backing_dir = its default instead of" in alert["message"]
        libvirtd.virsh("destroy", "small")
        wait_for("the end of the alert", lambda: not alerts("libvirt-settings-changed"))
    finally:
        libvirtd.qemu_conf = before
        libvirtd.restart()


def test_a_hook_that_is_removed_is_told_of_until_it_is_back(libvirtd: PrivateLibvirt, daemon: Daemon) -> None:
    wait_for("the daemon to have looked", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.remove_hook()
    try:
        (alert,) = wait_for("the alert", lambda: alerts("installation-changed"))
        assert alert["subject"] == "/etc/libvirt/hooks/qemu.d/50-virt-dmem"
        assert "domains that start get no memory from pools" in alert["message"]
    finally:
        libvirtd.install_hook(HOOK)
    wait_for("the end of the alert", lambda: not alerts("installation-changed"))


@pytest.mark.needs_hugepages
def test_hvo_that_was_switched_off_is_switched_on_again(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    if HVO.read_text() != "1\n":
        pytest.skip("this kernel has no HVO")
    HVO.write_text("0\n")
    wait_for("HVO to be on", lambda: HVO.read_text() == "1\n")
    (alert,) = alerts("hvo-switched-off")
    assert "virt-dmemd put that right" in alert["message"]


@pytest.mark.needs_hugepages
def test_somebody_who_lowers_it_again_and_again_is_left_alone_and_nothing_is_claimed_that_is_gone(
    pages_back: None, libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    now = persistent()

    def given_up() -> bool:
        if persistent() == now:
            lower(64)
        return any("leaves it to you" in alert["message"] for alert in alerts("huge-pages-lowered"))

    wait_for("virt-dmemd to give up", given_up, timeout=60)
    assert checked()["host-unchanged"]["status"] == "FAIL"
    record = PoolRecord(hugetlbfs_pool, "hugetlbfs", HUGE, "/run/virt-dmem/pools/huge", {})
    lose(record, 48)

    def capacity() -> int:
        (pool,) = virt_dmem_json("pool", "list")["pools"]
        return int(pool["capacity_bytes"])

    wait_for("the loss to be seen", lambda: capacity() == 32 * MIB)
    libvirtd.define(domain_xml("large", memory="64MiB"))
    virt_dmem("apply", "large", "--pool", hugetlbfs_pool)
    with pytest.raises(
        RigError, match=r"96 MiB of pool huge are gone: somebody lowered .* 'virt-dmem pool mount huge'"
    ):
        libvirtd.virsh("start", "--paused", "large")
    assert "96 MiB of them are gone" in virt_dmem("alerts")

    virt_dmem("pool", "mount", "huge")
    assert persistent() == now
    wait_for("the memory to be back", lambda: capacity() == 128 * MIB)
    libvirtd.virsh("start", "--paused", "large")
    wait_for("the end of the alert", lambda: not alerts("huge-pages-lowered"), timeout=120)


@pytest.mark.needs_hugepages
def test_a_daemon_that_starts_takes_again_what_was_lost_meanwhile(
    pages_back: None, libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    daemon.stop()
    now = persistent()
    lower(64)
    lose(PoolRecord(hugetlbfs_pool, "hugetlbfs", HUGE, "/run/virt-dmem/pools/huge", {}), 60)
    assert virt_dmem_json("pool", "list")["pools"][0]["capacity_bytes"] == 8 * MIB
    assert checked()["host-unchanged"]["status"] == "FAIL"
    daemon.start()
    wait_for("the number to be back", lambda: persistent() == now)
    assert checked()["host-unchanged"]["status"] == "PASS"
