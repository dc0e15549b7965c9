# SPDX-License-Identifier: GPL-2.0-or-later
"""Test the units on a booted Debian host, from its first installation over a reboot; one story, in this order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.lab import guests
from tests.rig.hugepages_lock import NR_HUGEPAGES

if TYPE_CHECKING:
    from tests.lab.container import Container
    from tests.lab.host import Host

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    container.run("virt-dmem pool create guests --size 128M --page-size 2M")
    container.run("systemctl -q enable virt-dmem-pool@guests.service")
    return container


@pytest.fixture(scope="module")
def uuid(host: Container) -> str:
    return guests.define(host, "one-cell", cells=("64MiB",), kind="qemu")


def active(host: Host, unit: str) -> str:
    return host.run(["/usr/bin/systemctl", "is-active", unit], check=False).stdout.strip()


def since_boot(host: Host, unit: str, what: str = "ActiveEnter") -> int:
    return int(host.run(f"systemctl show -P {what}TimestampMonotonic {unit}").stdout)


def test_the_units_are_right_for_systemd(host: Container) -> None:
    units = "virt-dmemd.service virt-dmemd.socket virt-dmem-pages.service virt-dmem-pages.socket"
    units += " virt-dmem-pool@guests.service"
    said = host.run(f"systemd-analyze verify --man=no {units}")
    assert said.stdout + said.stderr == ""


def test_the_daemon_is_exposed_as_little_as_possible(host: Container) -> None:
    said = host.run("systemd-analyze security --no-pager virt-dmemd.service | tail -n 1").stdout
    level = re.search(r"exposure level for virt-dmemd.service: ([\d.]+)", said)
    assert level is not None
    assert float(level[1]) <= 3.0, said


def test_the_socket_starts_the_daemon(host: Container) -> None:
    host.run("systemctl stop virt-dmemd.service")
    assert (active(host, "virt-dmemd.socket"), active(host, "virt-dmemd.service")) == ("active", "inactive")
    host.wait_for("virt-dmem list --json")  # repeatedly, as the daemon may take longer than a command waits
    assert active(host, "virt-dmemd.service") == "active"


def test_a_socket_that_somebody_removed_is_replaced_by_itself_or_by_what_the_hint_says(host: Container) -> None:
    host.run("rm /run/virt-dmem/sock /run/virt-dmem/sock-ro")
    host.wait_for("virt-dmem alerts --json | grep -q control-socket-gone")
    assert host.run("stat -c %a /run/virt-dmem/sock").stdout.strip() == "600"
    host.run("systemctl stop virt-dmemd.service; rm -f /run/virt-dmem/sock /run/virt-dmem/sock-pages")
    assert active(host, "virt-dmemd.socket") == "active", "systemd does not notice"
    said = host.run("virt-dmem list", check=False).stderr
    assert "Start it with 'systemctl restart virt-dmemd.socket'" in said
    for socket in ("virt-dmemd.socket", "virt-dmem-pages.socket"):
        host.run(f"systemctl restart {socket}")
    host.wait_for("virt-dmem list --json")
    host.run("test -S /run/virt-dmem/sock-pages")
    host.run("rm /run/virt-dmem/sock && systemctl restart virt-dmemd.socket")
    host.wait_for("virt-dmem list --json")


def test_libvirtd_stopped_by_its_administrator_stays_stopped(host: Container) -> None:
    host.run("systemctl stop libvirtd.service")
    host.run("sleep 7")
    assert active(host, "libvirtd.service") == "inactive"
    host.run("systemctl start libvirtd.service")
    host.wait_for("virt-dmem check | grep -q 'PASS  libvirt:'")


def test_the_watchdog_restarts_a_daemon_that_hangs(host: Container) -> None:
    host.run("mkdir -p /run/systemd/system/virt-dmemd.service.d")
    host.write(
        "/run/systemd/system/virt-dmemd.service.d/lab.conf", "[Service]\nWatchdogSec=8s\nTimeoutAbortSec=2s\n"
    )
    host.run("systemctl daemon-reload && systemctl restart virt-dmemd.service")
    hung = host.run("systemctl show -P MainPID virt-dmemd.service").stdout.strip()
    host.run(f"kill -STOP {hung}")
    host.wait_for(f"! test -d /proc/{hung} && systemctl is-active -q virt-dmemd.service", timeout=60)
    assert host.json("virt-dmem list --json", timeout=60)["schema"] == 1
    assert "atchdog timeout" in host.run("journalctl -b -u virt-dmemd.service --no-pager").stdout


def test_after_a_reboot_an_autostarted_guest_has_its_memory_in_the_pool(host: Container, uuid: str) -> None:
    host.run("virsh -q autostart one-cell")
    # a stand-in: Debian has only libvirtd
    host.write(
        "/etc/systemd/system/virtqemud.service",
        "[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
    )
    host.run("systemctl -q enable virtqemud.service")
    # and an impossible pool: there are no 64 GiB
    host.run(
        'sed \'s/"guests"/"ghost"/; s|pools/guests|pools/ghost|; s/134217728/68719476736/g\''
        " /var/lib/virt-dmem/pools/guests.json >/var/lib/virt-dmem/pools/ghost.json"
        " && systemctl -q enable virt-dmem-pool@ghost.service"
    )
    host.shut_down()
    NR_HUGEPAGES.write_text("0")  # as they are after a boot of the kernel
    host.start()
    host.wait_for("virsh domstate one-cell | grep -q running", timeout=120)
    assert guests.memory_of(host, uuid) == {"ram-node0": (2 * MIB, {0})}
    assert guests.pool(host)["reserved_bytes"] == 64 * MIB


def test_pools_and_daemon_were_up_before_libvirtd(host: Container) -> None:
    for unit in ("libvirtd.service", "virtqemud.service"):
        begun = since_boot(host, unit, "InactiveExit")
        assert 0 < since_boot(host, "virt-dmemd.service") <= begun
        assert 0 < since_boot(host, "virt-dmem-pool@guests.service") <= begun


def test_a_pool_that_cannot_be_mounted_delays_no_boot(host: Container) -> None:
    assert active(host, "virt-dmem-pool@ghost.service") == "failed"
    assert active(host, "multi-user.target") == "active"
    host.run("systemctl -q disable virt-dmem-pool@ghost.service; virt-dmem pool destroy ghost")
    failed = host.run("journalctl -b --no-pager -u virt-dmem-pool@ghost.service").stdout
    assert "64 GiB" in failed, failed
