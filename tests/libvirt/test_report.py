# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that a report contains what support needs, and no private data."""

from __future__ import annotations

import json
import mmap
import stat
import tarfile
from pathlib import Path

from tests.rig.command import virt_dmem
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import tail, wait_for

SECRET = "hunter2"
"""The common prefix of all secrets."""


def packed(path: Path) -> dict[str, bytes]:
    """Return every file of a report, unpacked."""
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file}


def talkative_xml() -> str:
    """Return a guest's XML with a secret wherever one can be."""
    metadata = f"""
        <dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' xmlns:o='urn:other' pool='small'
                     o:note='{SECRET}-attribute'>
          <o:source><o:path>{SECRET}-ours</o:path></o:source>
        </dmem:memory>
        <ci:seed xmlns:ci='urn:cloud-init'><ci:password>{SECRET}-cloud</ci:password></ci:seed>
        <x:memory xmlns:x='urn:not-ours' unit='{SECRET}-foreign'>{SECRET}-text</x:memory>
    """
    devices = f"""
        <graphics type='vnc' port='-1' passwd='{SECRET}'/>
        <channel type='unix'><target type='virtio' name='{SECRET}.channel'/></channel>
    """
    xml = domain_xml(
        "talkative", metadata=metadata, devices=devices, qemu_args=["-fw_cfg", f"name=opt/x,string={SECRET}-args"]
    )
    xml = xml.replace("<metadata>", f"<title>{SECRET}-title</title><description>{SECRET}</description><metadata>")
    smbios = f"<sysinfo type='smbios'><system><entry name='serial'>{SECRET}-smbios</entry></system></sysinfo>"
    xml = xml.replace("<os>", f"{smbios}<os><smbios mode='sysinfo'/>")
    assert xml.count(SECRET) == 11
    return xml


def test_a_report_says_what_is_and_tells_no_secret(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    daemon.config = f"# {SECRET}-comment\n[prefault]\nthreads = 2\n"
    daemon.restart()
    with Path("/etc/libvirt/qemu.conf").open("a") as conf:
        conf.write(f'vnc_password = "{SECRET}-conf"\n')
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    uuid = libvirtd.define(talkative_xml())
    virt_dmem("apply", "talkative", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "talkative")
    (extent,) = json.loads(virt_dmem("show", "talkative", "--json"))["domain"]["extents"]
    with Path(extent["path"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4096 : 4096 + 13] = f"{SECRET}-inside".encode()[:13]

    path = tmp_path / "report.tar.gz"
    virt_dmem("report", "-o", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = packed(path)
    assert [name for name, content in found.items() if SECRET.encode() in content] == []
    assert sum(map(len, found.values())) < 2 << 20
    assert SECRET not in daemon.log.read_text(), "of which the journal's part is made"

    assert not [name for name in found if name.endswith("missing.txt") and not name.startswith("systemd")]
    assert json.loads(found["versions.json"])["libvirt"].count(".") == 2
    assert any(check["name"] == "daemon" and check["status"] == "PASS" for check in json.loads(found["check.json"]))
    assert json.loads(found["daemon/domains.json"])["domains"][0]["uuid"] == uuid
    assert json.loads(found["ledger.json"])["reservation"][0]["phase"] == "running"
    assert json.loads(found["config.json"])["prefault.threads"]["origin"] == "/etc/virt-dmem/virt-dmem.toml"
    assert b"virt_dmem_domains" in found["daemon/metrics.prom"]
    assert b"HugePages_Total" in found["host/meminfo"]
    assert f"/pools/{tmpfs_pool}".encode() in found["host/mounts.json"]
    assert json.loads(found["libvirt/hooks.json"])[0]["path"].endswith("50-virt-dmem")
    assert b"security_driver" in found["libvirt/qemu.conf"]
    for name in (f"domains/{uuid}.xml", f"domains/{uuid}-live.xml"):
        xml = found[name].decode()
        assert '<source type="file"/>' in xml
        assert "<name>talkative</name>" in xml
        assert 'pool="small"' in xml
        assert "vnc" not in xml


def test_a_report_without_a_daemon_and_without_libvirt_says_why_something_is_missing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    daemon.stop()
    libvirtd.stop()
    path = tmp_path / "report.tar.xz"
    virt_dmem("report", "-o", path)
    found = packed(path)
    assert b"virt-dmemd does not answer" in found["daemon/missing.txt"]
    assert b"libvirt does not answer" in found["domains/missing.txt"]
    assert "reservation" in json.loads(found["ledger.json"])
