# SPDX-License-Identifier: GPL-2.0-or-later
"""apply and unapply on a real libvirt, by the command and by the daemon itself."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from lxml import etree

from tests.rig.command import virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import tail, wait_for
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.hypervisor.connection import Hypervisor

REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"
SHAPES = {
    "plain": {},
    "cells": {"cells": ["64MiB", "32MiB"]},
    "hugepages": {"memory_backing": "<hugepages/>"},
    "cells and hugepages": {
        "cells": ["64MiB", "32MiB"],
        "memory_backing": "<hugepages><page size='2' unit='M' nodeset='0'/></hugepages><nosharepages/>",
    },
    "locked": {"memory_backing": "<locked/>"},
    "numad": {"numatune": "<memory mode='strict' placement='auto'/>"},
    "memfd": {"memory_backing": "<source type='memfd'/><access mode='private'/><allocation mode='immediate'/>"},
}


def persistent_xml(libvirtd: PrivateLibvirt, name: str) -> bytes:
    return libvirtd.virsh("dumpxml", "--inactive", "--security-info", name).encode()


def canonical(xml: bytes) -> bytes:
    root = etree.fromstring(xml, etree.XMLParser(remove_blank_text=True))
    return etree.tostring(root, method="c14n2")


@pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=pytest.mark.needs_tmpfs if name == "locked" else ()) for name in SHAPES]
)
def test_unapply_gives_back_what_libvirt_had_before_apply(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, shape: str
) -> None:
    libvirtd.define(domain_xml("shape", **SHAPES[shape]))  # type: ignore[arg-type]
    before = persistent_xml(libvirtd, "shape")
    virt_dmem("apply", "shape", "--pool", tmpfs_pool)
    applied = persistent_xml(libvirtd, "shape")
    assert read_domain(applied).applied
    virt_dmem("apply", "shape", "--pool", tmpfs_pool)
    assert persistent_xml(libvirtd, "shape") == applied, (
        "what libvirt made of our output is applied to nothing changed"
    )
    virt_dmem("unapply", "shape")
    assert canonical(persistent_xml(libvirtd, "shape")) == canonical(before)


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("dry"))
    before = persistent_xml(libvirtd, "dry")
    shown = virt_dmem("apply", "dry", "--pool", tmpfs_pool, "--dry-run", "--print-diff")
    assert any(line.startswith("+") and "<source type=" in line for line in shown.splitlines())
    assert persistent_xml(libvirtd, "dry") == before


def test_a_pool_that_does_not_exist_is_refused(libvirtd: PrivateLibvirt, daemon: Daemon) -> None:
    libvirtd.define(domain_xml("nopool"))
    assert "nowhere" in virt_dmem_fails("apply", "nopool", "--pool", "nowhere", status=1)


def test_a_domain_defined_with_our_metadata_is_applied_by_itself(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.define(domain_xml("auto", metadata=REQUEST))
    wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "auto")).applied)
    libvirtd.virsh("start", "--paused", "auto")
    assert virt_dmem_json("show", "auto")["domain"]["phase"] == "running"


def test_a_domain_defined_while_the_daemon_was_away_is_applied_when_it_is_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    daemon.stop()
    libvirtd.define(domain_xml("later", metadata=REQUEST))
    daemon.start()
    wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "later")).applied)


def test_a_password_survives_and_is_neither_logged_nor_shown(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    graphics = "<graphics type='vnc' port='-1' passwd='hunter2'/>"
    libvirtd.define(domain_xml("vnc", metadata=REQUEST, devices=graphics))
    wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "vnc")).applied)
    assert b"passwd='hunter2'" in persistent_xml(libvirtd, "vnc")
    shown = virt_dmem("unapply", "vnc", "--print-diff", "--dry-run") + virt_dmem("unapply", "vnc", "--print-xml")
    assert "hunter2" not in shown
    assert "hunter2" not in daemon.log.read_text()
    assert b"passwd='hunter2'" in persistent_xml(libvirtd, "vnc")


def test_a_tool_that_keeps_undoing_us_is_left_to_win_and_an_alarm_is_raised(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    xml = domain_xml("fight", metadata=REQUEST)
    for _ in range(3):
        libvirtd.define(xml)
        wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "fight")).applied)
    libvirtd.define(xml)
    wait_for("the alarm", lambda: "fight: applied 3 times" in tail(daemon.log))
    assert not read_domain(persistent_xml(libvirtd, "fight")).applied


def test_unapply_holds_although_the_daemon_follows(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.define(domain_xml("free", metadata=REQUEST))
    wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "free")).applied)
    virt_dmem("unapply", "free")
    time.sleep(1)
    assert not read_domain(persistent_xml(libvirtd, "free")).managed


def define_with(libvirtd: PrivateLibvirt, xml: bytes, title: str) -> bytes:
    """Define ``xml`` with another title and number of vCPUs, as a management tool would; return it."""
    root = etree.fromstring(xml)
    for old in root.findall("title"):
        root.remove(old)
    element = etree.Element("title")
    element.text = title
    root.insert(1, element)
    root.find("vcpu").text = str(1 + len(title) % 3)
    libvirtd.define(etree.tostring(root, encoding="unicode"))
    return etree.tostring(root)


def defined_events(libvirtd: PrivateLibvirt, watcher: subprocess.Popen[str]) -> int:
    """How many DEFINED events ``virsh event`` saw, now that it is ended."""
    watcher.terminate()
    printed, _ = watcher.communicate(timeout=10)
    return printed.count("Defined")


@pytest.fixture
def watcher(libvirtd: PrivateLibvirt) -> Iterator[subprocess.Popen[str]]:
    command = ["virsh", "-c", libvirtd.uri, "event", "--event", "lifecycle", "--loop"]
    with subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE, text=True) as process:
        time.sleep(0.5)  # until it has registered; it says nothing about that
        yield process
        process.terminate()


PASSWORD = "<graphics type='vnc' port='-1' passwd='hunter2'/>"


def test_a_tool_that_reads_and_writes_in_a_loop_loses_nothing_and_makes_no_loop(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, watcher: subprocess.Popen[str]
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.define(domain_xml("shared", metadata=REQUEST, devices=PASSWORD))
    for number in range(20):
        define_with(libvirtd, persistent_xml(libvirtd, "shared"), f"title {number}")
    wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "shared")).applied)
    time.sleep(1)
    last = etree.fromstring(persistent_xml(libvirtd, "shared"))
    assert last.findtext("title") == "title 19"
    assert last.findtext("vcpu") == str(1 + len("title 19") % 3)
    assert last.find("devices/graphics").get("passwd") == "hunter2"
    assert read_domain(persistent_xml(libvirtd, "shared")).applied
    assert 1 <= defined_events(libvirtd, watcher) - 21 <= 3


def test_a_tool_that_knows_nothing_of_us_gets_its_changes_and_we_ours(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, watcher: subprocess.Popen[str]
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    template = domain_xml("managed", metadata=REQUEST, devices=PASSWORD, uuid=str(uuid.uuid4())).encode()
    for number in range(3):
        define_with(libvirtd, template, f"title {number}")
        wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "managed")).applied)
        root = etree.fromstring(persistent_xml(libvirtd, "managed"))
        assert root.findtext("title") == f"title {number}"
        assert root.find("devices/graphics").get("passwd") == "hunter2"
    time.sleep(0.5)
    assert defined_events(libvirtd, watcher) == 6


class Overtaken(Hypervisor):
    """Another tool defines between our last look and our own define, for the first ``times`` times."""

    def __init__(self, define: Callable[[], object], times: int) -> None:
        super().__init__(PrivateLibvirt.uri)
        self._define = define
        self._overtaken_at = [2 * number for number in range(1, times + 1)]
        self._looks = 0

    def inactive_xml(self, domain: str, *, secure: bool = True) -> bytes:
        """Look, and be overtaken."""
        seen = super().inactive_xml(domain, secure=secure)
        self._looks += 1
        if self._looks in self._overtaken_at:
            self._define()
        return seen


@pytest.mark.parametrize("times", [1, 2])
def test_a_change_between_our_last_look_and_our_define_is_not_lost(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, times: int
) -> None:
    daemon.stop()
    xml = domain_xml("overtaken", metadata=REQUEST, devices=PASSWORD, uuid=str(uuid.uuid4()))
    libvirtd.define(xml)
    titles = iter(["first", "second", "third"])
    tool = Overtaken(lambda: define_with(libvirtd, xml.encode(), next(titles)), times)
    with tool:
        tool.redefine(tool.find("overtaken"), lambda now: apply(now, pool=tmpfs_pool, monitor=True))
    found = persistent_xml(libvirtd, "overtaken")
    assert etree.fromstring(found).findtext("title") == ["first", "second"][times - 1]
    assert etree.fromstring(found).find("devices/graphics").get("passwd") == "hunter2"
    assert read_domain(found).applied
    virt_dmem("unapply", "overtaken")
    assert etree.fromstring(persistent_xml(libvirtd, "overtaken")).findtext("title") is not None
