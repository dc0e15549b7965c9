# SPDX-License-Identifier: GPL-2.0-or-later
"""Run virt-dmemd with the restrictions of its systemd unit.

Without systemd: setpriv and prctl apply the same restrictions, as given in the unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig import Daemon, domain_xml
from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.processes import tail, wait_for
from tests.rig.sandbox import restricted_as, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rig import PrivateLibvirt

REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"
UNIT = "virt-dmemd.service"


@pytest.fixture
def restricted_daemon(libvirtd: PrivateLibvirt) -> Iterator[Daemon]:
    with Daemon(under=restricted_as(UNIT)) as daemon:
        yield daemon
        libvirtd.remove()


def test_a_guest_starts_and_ends_with_the_few_capabilities_of_the_unit(
    libvirtd: PrivateLibvirt, restricted_daemon: Daemon
) -> None:
    status = Path(f"/proc/{restricted_daemon.pid}/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    assert effective.bit_count() == len(setting(UNIT, "CapabilityBoundingSet"))
    virt_dmem("pool", "create", "small", "--backend", "tmpfs", "--size", "64MiB")
    libvirtd.define(domain_xml("modest", memory="32MiB"))
    virt_dmem("apply", "modest", "--pool", "small")
    libvirtd.virsh("start", "modest", "--paused")
    assert virt_dmem_json("show", "modest")["domain"]["phase"] == "running"
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(restricted_daemon.log))
    libvirtd.define(domain_xml("unasked", memory="32MiB", metadata=REQUEST))
    applied = "unasked: applied automatically"
    wait_for("the daemon to apply a domain", lambda: applied in tail(restricted_daemon.log))
    libvirtd.virsh("destroy", "modest")
    assert virt_dmem_json("pool", "list")["pools"][0]["reserved_bytes"] == 0
    assert not list(Path("/run/virt-dmem/pools/small").glob("libvirt-*"))
    virt_dmem("pool", "destroy", "small")
