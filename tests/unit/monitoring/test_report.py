# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify what a report leaves out, and that none is incomplete; tests/libvirt/test_report.py has whole ones."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from lxml import etree

from tests.rig.domain_documents import domain, metadata
from tests.rig.fake_tree import fake_tree, put
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import HypervisorError, UsageError
from virt_dmem.monitoring import report
from virt_dmem.monitoring.report import Source, collect, reduced, write


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A host of a fake tree, without libvirt, daemon and pools."""
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    return Source(config, {}, "test:///default", fake_tree(tmp_path / "root"))


SECRETS = """
    <!-- secret --><title>secret</title>
    <memoryBacking><source type='file' dir='secret'/><secret/></memoryBacking>
    <numatune><memory mode='strict' nodeset='$ecret'/></numatune>
    <devices>
      <graphics type='vnc' passwd='secret'><source type='secret'/></graphics>
      <memory model='dimm'>$ecret<target><size unit='KiB'>1024; secret</size><node>0</node></target></memory>
      <x:memory xmlns:x='urn:x' model='secret'>secret</x:memory>
    </devices>
"""


def test_of_a_domain_only_listed_elements_and_attributes_with_plain_values_are_kept() -> None:
    text = reduced(domain(metadata(" pool='p' note='secret'") + SECRETS))
    assert "ecret" not in text
    kept = etree.fromstring(text)
    assert kept.findtext("name") == "vm"
    assert kept.xpath("string(memoryBacking/source/@type)") == "file"
    assert kept.xpath("string(numatune/memory/@mode)") == "strict"
    assert kept.xpath("string(metadata/*/@pool)") == "p"
    assert kept.xpath("string(devices/memory/target/node)") == "0"
    assert [element.tag for element in kept.find("devices")] == ["memory"]


def test_the_name_of_a_domain_is_kept_whatever_it_is() -> None:
    name = "it's <b> & \N{LATIN SMALL LETTER E WITH ACUTE}"
    xml = domain().replace(b">vm<", b">it's &lt;b> &amp; \xc3\xa9<")
    assert etree.fromstring(reduced(xml)).findtext("name") == name


def test_of_the_host_only_what_concerns_memory_is_kept(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        source.root / "proc/cmdline",
        "root=secret hugepages=4 dmem=2G key=secret default_hugepagesz=2M memmap=1G$4G\n",
    )
    put(source.root / "etc/libvirt/qemu.conf", '#user = "secret"\nvnc_password = "secret"\n  user = "qemu"\n')
    put(source.root / "etc/libvirt/hooks/qemu", "secret\n")
    mounts = (
        "30 1 0:30 / /secret rw - nfs secret rw\n31 1 0:31 / /dev/hugepages rw - hugetlbfs none rw,pagesize=2M\n"
    )
    put(source.root / "proc/self/mountinfo", mounts)
    monkeypatch.setattr(report, "_PARTS", {name: report._PARTS[name] for name in ("host", "libvirt")})
    found = {name: content.decode() for name, content in collect(source)}
    assert [name for name, content in found.items() if "secret" in content] == []
    assert found["host/cmdline"].split() == ["hugepages=4", "dmem=2G", "default_hugepagesz=2M", "memmap=1G$4G"]
    assert [mount["fstype"] for mount in json.loads(found["host/mounts.json"])] == ["hugetlbfs"]
    assert found["libvirt/qemu.conf"].split() == ["user", "=", '"qemu"']
    (hook,) = json.loads(found["libvirt/hooks.json"])
    assert hook["path"].endswith("/hooks/qemu")
    assert len(hook["sha256"]) == 64


def unreadable(_source: Source) -> dict[str, str]:
    raise HypervisorError("libvirt does not answer.\x1b[2J", hint="")


def test_a_part_that_cannot_be_read_is_replaced_by_the_reason_and_nothing_controls_a_terminal(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = {"/x": "a\tb\n\x1b[2J"}
    monkeypatch.setattr(report, "_PARTS", {"a.json": unreadable, "b": unreadable, "c": lambda _: several})
    assert dict(collect(source)) == {
        "a.json.missing.txt": b"libvirt does not answer.\\x1b[2J\n",
        "b/missing.txt": b"libvirt does not answer.\\x1b[2J\n",
        "c/x": b"a\tb\n\\x1b[2J",
    }


def test_the_archive_has_its_files_in_a_directory_of_its_name(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "_PARTS", {"a.json": lambda _: {"": "1"}, "b": lambda _: {"/c": "2"}})
    for path in (tmp_path / "one.tar.gz", tmp_path / "two.tar.xz"):
        assert write(source, path) == ["a.json", "b/c"]
        directory = path.name.partition(".")[0]
        with tarfile.open(path) as archive:
            assert archive.getnames() == [f"{directory}/a.json", f"{directory}/b/c"]
            assert {member.mode for member in archive} == {0o600}
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_report_that_fails_half_way_is_removed(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_source: Source) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_PARTS", {"a.json": lambda _: {"": "1"}, "b": interrupted})
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "report.tar.gz")
    assert list(tmp_path.glob("report*")) == []


def test_a_file_that_replaced_a_report_is_not_removed_with_it(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "report.tar.gz"

    def replaced(_source: Source) -> dict[str, str]:
        path.unlink()
        path.write_text("of another")
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_PARTS", {"a": replaced})
    with pytest.raises(KeyboardInterrupt):
        write(source, path)
    assert path.read_text() == "of another"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("there.tar.gz", "exists already"), ("link.tar.gz", "exists already"), ("odd.zip", "does not end with")],
)
def test_a_report_overwrites_nothing_and_is_no_other_archive(
    source: Source, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "there.tar.gz").write_text("mine")
    (tmp_path / "link.tar.gz").symlink_to("elsewhere")
    with pytest.raises(UsageError, match=reason):
        write(source, tmp_path / name)
    assert (tmp_path / "there.tar.gz").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "odd.zip").exists()
