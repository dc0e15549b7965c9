# SPDX-License-Identifier: GPL-2.0-or-later
"""What the README tells an operator to type is typed here, in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt

README = Path(__file__).parents[2] / "README.md"


def operator_commands() -> list[str]:
    blocks = re.findall(r"^```sh operator\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_the_commands_of_the_readme_work_in_their_order(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmp_path: Path
) -> None:
    commands = operator_commands()
    assert len(commands) >= 10
    libvirtd.define(domain_xml("my-guest"))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/usr/bin:/bin"
    }
    try:
        for command in commands:
            done = subprocess.run(
                ["/bin/sh", "-ec", command.replace("sudo ", "")],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    finally:
        libvirtd.remove()
        destroy = [str(Path(sys.executable).with_name("virt-dmem")), "pool", "destroy", "guests"]
        subprocess.run(destroy, capture_output=True, check=False)
    assert any("apply" in command for command in commands)
    assert any("virsh start" in command for command in commands)
    undone = (tmp_path / "my-guest.xml").read_text()
    assert "virt-dmem.dev" not in undone
