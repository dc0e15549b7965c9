# SPDX-License-Identifier: GPL-2.0-or-later
"""Install the packages by apt on a booted host with KVM, AppArmor and a running libvirtd; upgrade, reboot, remove.

One story per release; ``make test-booted`` runs it. What the packages leave and refuse file by file is
in test_debian.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import guests
from tests.lab.conftest import HOST
from tests.lab.host import PATIENCE
from tests.lab.machine import Machine
from tests.packages.host_root import PACKAGES
from tests.packages.machine_disk import REPOSITORY_ARCHIVE, machine_image
from tests.packages.repacked import repacked
from tests.rig.documents import lines
from tests.rig.repository import REPOSITORY
from virt_dmem import __version__

pytestmark = [pytest.mark.needs_lab, pytest.mark.timeout(900 * PATIENCE)]

RELEASES = os.environ.get("RELEASE", "bookworm trixie").split()
MIB = 1 << 20
UNITS = "virt-dmemd.service virt-dmemd.socket virt-dmem-pages.socket"
ON_ITS_NODE = {"ram-node0": (2 * MIB, {0})}
APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -q"


@pytest.fixture(scope="module", params=RELEASES)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    image = machine_image(request.param, tmp_path_factory.mktemp("disk"))
    with Machine(image, node_gib=(3,), name="packaged") as machine:
        request.node.stash[HOST] = machine
        guests.provide_guest(machine)
        machine.run(f"tar -xPf {REPOSITORY_ARCHIVE}")
        yield machine
    image.disk.unlink()


@pytest.fixture(scope="module")
def uuid(host: Machine) -> str:
    return guests.define(host, "first", cells=("128MiB",), boots=True)


def timed(host: Machine, what: str, command: str) -> str:
    """Run a command, print what it took, and return all that it said."""
    began = time.monotonic()
    said = host.run(f"exec 2>&1; {command}", timeout=600).stdout
    print(f"{host.image.suite}: {what} took {time.monotonic() - began:.0f} s")
    return said


def qemu(host: Machine, uuid: str) -> str:
    return host.run(f"pgrep -f -- '[-]uuid {uuid}'").stdout


def states(host: Machine, verb: str) -> set[str]:
    return set(host.run(f"systemctl {verb} {UNITS}", check=False).stdout.split())


def denied(host: Machine) -> str:
    return host.run("dmesg | grep 'apparmor=\"DENIED\"' | grep -v qemu-ga", check=False).stdout


def test_the_readmes_three_lines_install_it_beside_a_libvirtd_that_runs(host: Machine) -> None:
    assert host.run(
        "systemctl is-active libvirtd.service && virsh -q list && virt-dmem --version 2>&1", check=False
    ).status
    commands = [line for line in lines(REPOSITORY / "README.md") if line.split()[0] in ("cp", "apt")]
    assert len(commands) == 3
    script = " && ".join(command.replace("trixie", host.image.suite) for command in commands)
    timed(
        host, "the README's installation", f"cd {REPOSITORY} && export DEBIAN_FRONTEND=noninteractive && {script}"
    )
    assert re.fullmatch(
        rf"virt-dmem {__version__} \([0-9a-f]+(-dirty)?\)\n", host.run("virt-dmem --version").stdout
    )


def test_check_lacks_nothing_but_a_pool(host: Machine) -> None:
    assert guests.complaints(host) == {"pools": "There is no pool yet."}
    host.run("virt-dmem check")
    assert states(host, "is-enabled") == {"enabled"}
    assert states(host, "is-active") == {"active"}


def test_the_first_guest_starts_confined_from_the_pool(host: Machine, uuid: str) -> None:
    host.run("virt-dmem pool create guests --size 256M --page-size 2M --on-boot")
    host.run("dmesg -C; virsh -q start first")
    guests.boot(host, "first")
    assert guests.memory_of(host, uuid) == ON_ITS_NODE
    profile = host.run(f"cat /proc/$(pgrep -f -- '[-]uuid {uuid}')/attr/current").stdout
    assert profile.strip("\0\n") == f"libvirt-{uuid} (enforce)"
    assert denied(host) == ""


def test_removing_it_is_refused_under_that_guest(host: Machine, uuid: str) -> None:
    said = host.run(f"exec 2>&1; {APT} remove virt-dmem", check=False)
    assert said.status
    assert "because these domains use memory from its pools:\n    first\n" in said.stdout.replace("\r", "")
    assert states(host, "is-active") == {"active"}
    assert guests.complaints(host) == {}


def test_the_guest_lives_through_an_upgrade(host: Machine, uuid: str, tmp_path: Path) -> None:
    (deb,) = (PACKAGES / host.image.suite).glob("virt-dmem_*.deb")
    later = repacked(deb, "99.0", tmp_path)
    host.write("/root/later.deb", later.read_bytes())
    before, daemon = qemu(host, uuid), host.run("systemctl show -P MainPID virt-dmemd.service").stdout
    timed(host, "the upgrade under a guest", f"{APT} install /root/later.deb")
    assert qemu(host, uuid) == before
    assert host.run("systemctl show -P MainPID virt-dmemd.service").stdout != daemon
    printed = len(guests.console(host, "first").splitlines())
    host.wait_for(f"test $(wc -l <{guests.log_of('first')}) -gt {printed}", timeout=120)
    assert guests.pool(host)["reserved_bytes"] == 128 * MIB
    assert guests.complaints(host) == {}


def test_a_downgrade_that_can_read_the_ledger_works_under_the_guest(host: Machine, uuid: str) -> None:
    before = qemu(host, uuid)
    timed(host, "the downgrade under a guest", f"{APT} install --allow-downgrades virt-dmem/{host.image.suite}")
    assert qemu(host, uuid) == before
    assert "99.0" not in host.run("dpkg-query -W virt-dmem").stdout
    assert guests.pool(host)["reserved_bytes"] == 128 * MIB


def test_after_a_boot_pool_and_guest_start_by_themselves(host: Machine, uuid: str) -> None:
    host.run("virsh -q autostart first")
    host.reboot()
    host.wait_for("virsh -q list --name | grep -q first", timeout=120)
    assert guests.memory_of(host, uuid) == ON_ITS_NODE
    assert states(host, "is-active") == {"active"}
    assert guests.complaints(host) == {}
    host.run("virsh -q autostart --disable first && virsh -q destroy first")


def test_an_elastic_pool_takes_its_pages_for_a_guest_and_gives_them_back(host: Machine) -> None:
    """By the second service, which its socket starts."""
    pages = int(host.run("cat /proc/sys/vm/nr_hugepages").stdout)
    # Debian 13's kernel loses pages with HVO
    host.run("echo 0 >/proc/sys/vm/hugetlb_optimize_vmemmap 2>/dev/null || true")
    host.run("virt-dmem pool create more --elastic --max 128M --keep-free 256M --linger 0 --no-hvo")
    guests.define(host, "second", cells=("64MiB",))
    host.run("virt-dmem apply second --pool more && virsh -q start --paused second")
    assert int(host.run("cat /proc/sys/vm/nr_hugepages").stdout) == pages + 32
    assert host.run("systemctl show -P ActiveState virt-dmem-pages.service").stdout == "active\n"
    assert guests.complaints(host) == {}
    host.run("virsh -q destroy second")
    host.wait_for(f"test $(cat /proc/sys/vm/nr_hugepages) = {pages}")
    host.run("virt-dmem pool destroy more --yes && virsh -q undefine second")


def test_removed_and_purged_it_leaves_a_libvirt_that_starts_the_guest_without_it(host: Machine) -> None:
    host.run("virt-dmem unapply first && virt-dmem pool destroy guests --yes")
    timed(host, "removing and purging", f"{APT} remove virt-dmem && {APT} purge virt-dmem")
    assert host.run("cat /proc/sys/vm/nr_hugepages").stdout == "0\n"
    left = (
        "find /usr /etc /run /var/lib -xdev -name '*virt-dmem*' -not -path '/var/lib/apt/*' -not -path '/etc/apt/*'"
    )
    assert host.run(left).stdout == ""
    assert (
        host.run("systemctl list-units --all --no-legend 'virt-dmem*' | grep -v not-found", check=False).stdout
        == ""
    )
    host.run("virsh -q start --paused first && virsh -q destroy first && virsh -q undefine first")
