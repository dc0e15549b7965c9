# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook for CloudStack's agent, called as its LibvirtKvmAgentHook.java does: the agent itself is not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import DomainRefused

HOOK = REPOSITORY / "hooks/cloudstack/libvirt-vm-xml-transformer.sh"
XML = """<domain type='kvm'>
<name>i-2-8-VM</name>
<uuid>c59796a0-5bc7-49f2-91a4-8bc88c8a42c5</uuid>
<description>Other Linux (64-bit) &amp; more, 'quoted' $(too)</description>
<os>
<type  arch='x86_64' machine='pc'>hvm</type>
</os>
<memory>2097152</memory>
<currentMemory>2097152</currentMemory>
<maxMemory slots='16' unit='KiB'>4194304</maxMemory>
<cpu> <numa> <cell id='0' cpus='0-5' memory='2097152' unit='KiB'/> </numa> </cpu>
<devices>
<memballoon model='virtio'/>
</devices>
<vcpu current="4">6</vcpu>
</domain>
"""
"""Of the shape that the agent writes."""
OTHER_RAM = (
    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<qemu:arg value='-mem-path'/><qemu:arg value='/tmp'/></qemu:commandline>"
)


def called(xml: str, method: str = "transform", path: str = "") -> str:
    """Return what the agent starts the VM with; it has standard error in it too."""
    environment = {"PATH": path or f"{Path(sys.executable).parent}:/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(
        [HOOK, method, xml],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else xml


def is_rejected(xml: bytes) -> bool:
    """Return whether virt-dmemd refuses such a domain at 'prepare' (domains.hooks)."""
    try:
        memory = read_domain(xml)
    except DomainRefused:
        return True
    return memory.managed and not (memory.applied or memory.file_backed)


def test_a_vm_of_a_user_gets_its_memory_from_the_pool() -> None:
    assert called(XML).rstrip() == apply(XML.encode(), pool="guests", monitor=True).decode().rstrip()


def test_xml_that_comes_escaped_as_for_a_shell_is_understood() -> None:
    escaped = re.sub(r"([\\\"'`$|&;()<>*?!\[\]{}~])", r"\\\1", XML)
    assert called(escaped) == called(XML)


@pytest.mark.parametrize("name", ["r-7-VM", "s-1-VM", "v-2-VM"])
def test_system_vms_are_left_alone_whatever_else_is_wrong(name: str) -> None:
    xml = XML.replace("i-2-8-VM", name)
    assert called(xml, path="/usr/bin:/bin").rstrip() == xml.rstrip()


@pytest.mark.parametrize(
    ("xml", "path"),
    [(XML, "/usr/bin:/bin"), (XML.replace("</domain>", f"{OTHER_RAM}</domain>"), "")],
    ids=["without virt-dmem", "what cannot be rewritten"],
)
def test_what_fails_gives_xml_that_virt_dmems_libvirt_hook_rejects(xml: str, path: str) -> None:
    """The agent would ignore an error, and start the VM on ordinary memory."""
    given = called(xml, path=path)
    assert is_rejected(given.encode())


def test_the_agent_can_run_it() -> None:
    assert os.access(HOOK, os.X_OK)
