# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd takes away from virt-dmemd, it does not need.

systemd itself is not there: the same restrictions are put on by setpriv and prctl, as the unit says them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig import Daemon, domain_xml
from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.processes import tail, wait_for
from tests.rig.repository import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rig import PrivateLibvirt

REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"
_UNIT = REPOSITORY / "systemd/virt-dmemd.service"
_DENY_WRITE_EXECUTE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # Linux 6.3; before, only systemd's own filter does it
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
os.umask(0o077)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _setting(name: str) -> list[str]:
    (line,) = (line for line in _UNIT.read_text().splitlines() if line.startswith(f"{name}="))
    return line.partition("=")[2].split()


@pytest.fixture
def restricted_daemon(libvirtd: PrivateLibvirt) -> Iterator[Daemon]:
    capabilities = ",".join(
        ["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in _setting("CapabilityBoundingSet"))]
    )
    assert _setting("NoNewPrivileges") == _setting("MemoryDenyWriteExecute") == ["yes"]
    assert _setting("UMask") == ["0077"]
    setpriv = ["setpriv", "--bounding-set", capabilities, "--inh-caps", "-all", "--no-new-privs"]
    with Daemon(under=[*setpriv, "/usr/bin/python3", "-c", _DENY_WRITE_EXECUTE]) as daemon:
        yield daemon
        libvirtd.remove()


def test_a_guest_starts_and_ends_with_the_few_capabilities_of_the_unit(
    libvirtd: PrivateLibvirt, restricted_daemon: Daemon
) -> None:
    status = Path(f"/proc/{restricted_daemon.pid}/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    assert effective.bit_count() == len(_setting("CapabilityBoundingSet"))
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
