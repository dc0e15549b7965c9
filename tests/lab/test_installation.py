# SPDX-License-Identifier: GPL-2.0-or-later
"""Upgrade under a running guest, uninstall, install again; one story, run in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import guests
from tests.lab.image import PROJECT

if TYPE_CHECKING:
    from tests.lab.container import Container

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    container.run("virt-dmem pool create guests --size 128M --page-size 2M")
    return container


@pytest.fixture(scope="module")
def uuid(host: Container) -> str:
    uuid = guests.define(host, "lives-on", cells=("64MiB",), kind="qemu")
    host.run("virsh -q start lives-on")
    return uuid


def test_check_is_content_once_libvirtd_was_reloaded_as_the_installer_says(host: Container) -> None:
    checks = {check["name"]: check for check in host.json("virt-dmem check --json", check=False)["checks"]}
    assert checks["hook-in-force"]["status"] == "PASS", checks["hook-in-force"]


def test_an_upgrade_leaves_the_running_guest_and_the_ledger(host: Container, uuid: str) -> None:
    before = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout
    host.run(f"sed -i 's/__version__ = .*/__version__ = \"99.0\"/' {PROJECT}/virt_dmem/__init__.py")
    host.run(f"make -C {PROJECT} install", timeout=400)
    assert "99.0" in host.run("virt-dmem --version").stdout
    assert host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout == before
    assert host.run("virsh domstate lives-on").stdout.split() == ["running"]
    assert guests.pool(host)["reserved_bytes"] == 64 * MIB
    (domain,) = host.json("virt-dmem list --json")["domains"]
    assert (domain["uuid"], domain["reserved_bytes"]) == (uuid, 64 * MIB)


def test_the_running_guest_gets_a_new_qemu_and_goes_on(host: Container, uuid: str) -> None:
    """With this release's libvirt: from 11.2 on it opens the saved state a second time at once."""
    before = host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout
    for _ in range(3):
        host.run("virt-dmem refresh lives-on", timeout=120)
    assert host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout != before
    assert host.run("virsh domstate lives-on").stdout.split() == ["running"]
    assert guests.pool(host)["reserved_bytes"] == 64 * MIB


def test_uninstalling_is_refused_while_a_domain_needs_us(host: Container, uuid: str) -> None:
    said = host.run(f"make -C {PROJECT} uninstall", check=False)
    assert said.status
    assert "lives-on" in said.stderr
    assert host.run("virt-dmem --version", check=False).status == 0


def test_uninstalling_leaves_nothing_but_state(host: Container, uuid: str) -> None:
    host.run("virsh -q destroy lives-on && virt-dmem unapply lives-on && virt-dmem pool destroy guests --force")
    host.run(f"make -C {PROJECT} uninstall", timeout=120)
    left = host.run("find /usr /etc /run -xdev -name '*virt-dmem*' -not -path '*/__pycache__/*'").stdout.split()
    assert [path for path in left if not path.startswith("/run/virt-dmem")] == []
    assert host.run("systemctl list-unit-files --no-legend 'virt-dmem*'", check=False).stdout == ""
    # and libvirt keeps working without virt-dmem
    host.run("virsh -q start lives-on && virsh -q destroy lives-on")


def test_it_can_be_installed_again(host: Container, uuid: str) -> None:
    host.run(f"make -C {PROJECT} install && systemctl try-reload-or-restart libvirtd", timeout=400)
    host.run("virt-dmem pool create guests --size 128M --page-size 2M")
    host.run("virt-dmem apply lives-on --pool guests && virsh -q start lives-on")
    assert guests.pool(host)["reserved_bytes"] == 64 * MIB
    assert sorted(guests.memory_of(host, uuid)) == ["ram-node0"]
