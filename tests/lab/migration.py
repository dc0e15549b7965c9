# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrate a running guest between hosts of different Debian releases, in each direction; ``make test-migration``.

The hosts are containers in one network, with the libvirt and QEMU of their release, a pool each; the guest runs
under TCG. Its machine type is one that all of them have: that of the oldest.
"""

from __future__ import annotations

import itertools
import subprocess
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.lab import guests
from tests.lab.container import Container
from tests.lab.image import PROJECT, NoPackages, the_root
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import CONSOLES
from virt_dmem.units import MIB

RELEASES = ("bookworm", "trixie", "trixie-backports")
MACHINE = "pc-i440fx-7.2"
SIZE = 192 * MIB
NAME = "mover"


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Container]]:
    """Provide a host of each release, with a pool that has room for one guest."""
    with ExitStack() as stack:
        found: dict[str, Container] = {}
        for release in RELEASES:
            try:
                root = the_root(release)
            except NoPackages as error:
                pytest.skip(str(error))
            network = next(iter(found.values()), None)
            host = stack.enter_context(Container(root, name=release, network=network))
            host.unpack_project()
            host.run("rm -f /lib/modules/*/build")  # of a kernel that does not run here: no module is built for it
            host.run(f"echo 'host_uuid = \"{uuids.uuid4()}\"' >>/etc/libvirt/libvirtd.conf")
            host.run(f"make --silent -C {PROJECT} install && systemctl restart libvirtd", timeout=400)
            host.run("virt-dmem pool create guests --backend tmpfs --size 256M")
            guests.provide_guest(host)
            print(host.run("virsh -q version --daemon | tail -n 2").stdout)
            found[release] = host
        yield found


def uri(host: Container) -> str:
    """Return the URI of a host's libvirt, for virsh on this machine."""
    return f"qemu+unix:///system?socket=/proc/{host.leader}/root/run/libvirt/libvirt-sock"


def reserved(host: Container) -> int:
    pools = host.json("virt-dmem pool list --json")["pools"]
    return sum(pool["reserved_bytes"] for pool in pools)


def create(host: Container, machine: str) -> None:
    """Start the guest on a host, with its memory in the pool."""
    xml = domain_xml(
        NAME, memory="192MiB", kind="qemu", machine=machine, image=guests.IMAGE, cmdline=guests.CMDLINE
    )
    host.run("virt-dmem rewrite --pool guests >/tmp/mover.xml && virsh -q create /tmp/mover.xml", stdin=xml)


def move(here: Container, there: Container) -> subprocess.CompletedProcess[str]:
    """Migrate the guest, as a client of both libvirts does."""
    command = ["virsh", "-q", "-c", uri(here), "migrate", "--live", NAME, uri(there)]
    return subprocess.run(
        [*command, "--migrateuri", "tcp://127.0.0.1:49300"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def cleared(here: Container, there: Container) -> Iterator[None]:
    """Destroy the guest at the end, wherever it is, and wait until the pools are free."""
    try:
        yield
    finally:
        for host in (here, there):
            host.run(f"virsh -q destroy {NAME}", check=False)
    for host in (here, there):
        host.wait_for("! virt-dmem list --json | grep -q reserved_bytes")


@pytest.mark.parametrize(("source", "destination"), list(itertools.permutations(RELEASES, 2)))
def test_a_running_guest_moves_from_one_release_to_another(
    hosts: dict[str, Container], source: str, destination: str
) -> None:
    here, there = hosts[source], hosts[destination]
    with cleared(here, there):
        create(here, MACHINE)
        guests.boot(here, NAME)
        assert (reserved(here), reserved(there)) == (SIZE, 0)
        began = time.monotonic()
        moved = move(here, there)
        assert moved.returncode == 0, moved.stderr
        print(f"migrated in {time.monotonic() - began:.1f} s")
        assert (reserved(here), reserved(there)) == (0, SIZE)
        (domain,) = there.json("virt-dmem list --json")["domains"]
        assert domain["phase"] == "running"
        lines = len(guests.console(there, NAME).splitlines())
        there.wait_for(f"test $(wc -l <{CONSOLES}/{NAME}.log) -gt {lines}", timeout=120)


@pytest.mark.parametrize(("source", "destination"), [("trixie", "bookworm"), ("trixie-backports", "trixie")])
def test_a_guest_whose_machine_type_the_other_lacks_stays_where_it_is(
    hosts: dict[str, Container], source: str, destination: str
) -> None:
    here, there = hosts[source], hosts[destination]
    with cleared(here, there):
        create(here, "pc")  # the newest that the source has
        said = move(here, there)
        assert said.returncode != 0
        assert "machine type" in said.stderr
        print(said.stderr.strip())
        assert (reserved(here), reserved(there)) == (SIZE, 0)
        assert here.run(f"virsh -q domstate {NAME}").stdout.split() == ["running"]
