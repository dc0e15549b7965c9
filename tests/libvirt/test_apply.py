# SPDX-License-Identifier: GPL-2.0-or-later
"""Apply and unapply with a real libvirt, by the command and by the daemon."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lxml import etree

from tests.rig.command import virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import tail, wait_for
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import HypervisorError
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.units import MIB

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


FILE_BACKED = "<source type='file'/><access mode='shared'/>"


@pytest.mark.parametrize("more", ["", "<allocation mode='immediate'/>", "<allocation mode='immediate'/><discard/>"])
def test_a_tool_that_defines_and_starts_in_one_breath_gets_pool_memory(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path, more: str
) -> None:
    """Faster than any rewrite, or with no definition to rewrite: its own XML says shared files."""
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    for round_ in range(4):
        made = tmp_path / f"{round_}.xml"
        made.write_text(domain_xml("breath", metadata=REQUEST, memory_backing=FILE_BACKED + more))
        libvirtd.virsh(f"create {made} --paused" if round_ == 0 else f"define {made}; start breath --paused")
        domain = virt_dmem_json("show", "breath")["domain"]
        assert (domain["phase"], domain["reserved_bytes"]) == ("running", 64 * MIB)
        libvirtd.remove("breath")
        wait_for("its memory", lambda: not virt_dmem_json("list")["domains"])


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


def test_a_tool_that_keeps_reverting_the_rewrite_wins_and_an_alert_is_raised(
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


@pytest.fixture
def defined_events(libvirtd: PrivateLibvirt, tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """How many DEFINED events of a domain ``virsh event`` has seen."""
    command = ["virsh", "-c", libvirtd.uri, "event", "--event", "lifecycle", "--loop"]
    printed = tmp_path / "events"

    def seen(name: str) -> int:
        return printed.read_text().count(f"domain '{name}': Defined")

    def registered() -> bool:  # it says nothing about that
        libvirtd.define(domain_xml("seen", uuid="dc95f9a1-bc07-4e8b-8a4c-ff9e2b3f0f6f"))
        return seen("seen") > 0

    with printed.open("w") as file, subprocess.Popen(["stdbuf", "-oL", *command], stdout=file) as process:
        wait_for("virsh event to see events", registered)
        yield seen
        process.terminate()


PASSWORD = "<graphics type='vnc' port='-1' passwd='hunter2'/>"


def test_a_tool_that_reads_and_writes_in_a_loop_loses_nothing_and_makes_no_loop(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, defined_events: Callable[[str], int]
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
    wait_for("all events", lambda: defined_events("shared") >= 22)
    assert defined_events("shared") - 21 <= 3


def test_a_tool_that_knows_nothing_of_us_gets_its_changes_and_we_ours(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, defined_events: Callable[[str], int]
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    template = domain_xml("managed", metadata=REQUEST, devices=PASSWORD, uuid=str(uuid.uuid4())).encode()
    for number in range(3):
        define_with(libvirtd, template, f"title {number}")
        wait_for("it to be applied", lambda: read_domain(persistent_xml(libvirtd, "managed")).applied)
        root = etree.fromstring(persistent_xml(libvirtd, "managed"))
        assert root.findtext("title") == f"title {number}"
        assert root.find("devices/graphics").get("passwd") == "hunter2"
    wait_for("all events", lambda: defined_events("managed") >= 6)
    time.sleep(0.5)
    assert defined_events("managed") == 6


class Overtaken(Hypervisor):
    """Let another tool define between the daemon's last read and its define, for the first ``times`` times."""

    def __init__(self, define: Callable[[], object], times: int) -> None:
        super().__init__(PrivateLibvirt.uri)
        self._define = define
        self._overtaken_at = [2 * number for number in range(1, times + 1)]
        self._looks = 0

    def inactive_xml(self, domain: str, *, secure: bool = True) -> bytes:
        """Read, and let another tool define before returning."""
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


@pytest.fixture
def broken_connection(libvirtd: PrivateLibvirt) -> Iterator[str]:
    """The URI of a connection to libvirt that breaks when a definition was sent: libvirt carries it out."""
    path = Path("/run/libvirt/broken-sock")
    path.unlink(missing_ok=True)

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect("/run/libvirt/libvirt-sock")
            sent = b""
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if server in ready:
                    data = server.recv(65536)
                    if b"<domain" in sent or not data:  # the answer to the definition
                        return
                    client.sendall(data)
                if client in ready:
                    if not (data := client.recv(65536)):
                        return
                    sent = sent[-10:] + data
                    server.sendall(data)

    def accept() -> None:
        while True:
            with suppress(OSError):
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()
                continue
            return

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"qemu+unix:///system?socket={path}"
        listener.shutdown(socket.SHUT_RDWR)


def test_where_the_connection_to_libvirt_breaks_it_does_not_say_that_nothing_was_changed(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, broken_connection: str
) -> None:
    libvirtd.define(domain_xml("shape"))
    said = virt_dmem_fails("--connect", broken_connection, "apply", "shape", "--pool", tmpfs_pool, status=1)
    assert "cannot be known" in said
    assert "virsh dumpxml --inactive" in said
    assert "changed." not in said
    wait_for("libvirt to define it", lambda: read_domain(persistent_xml(libvirtd, "shape")).applied)


def test_what_libvirt_refuses_to_define_was_not_changed(libvirtd: PrivateLibvirt) -> None:
    libvirtd.define(domain_xml("shape"))
    shape = libvirtd.virsh("domuuid", "shape").strip()
    with Hypervisor("qemu:///system") as hypervisor, pytest.raises(HypervisorError) as caught:
        hypervisor.redefine(shape, lambda xml: xml.replace(b"hvm", b"no such type"))
    assert "Its definition was not changed." in caught.value.hint


def test_several_are_applied_at_once_and_one_that_can_never_fit_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    for name, memory in (("web1", "64MiB"), ("web2", "64MiB"), ("db", "1TiB")):
        libvirtd.define(domain_xml(name, memory=memory))
    several = virt_dmem_json("apply", "--matching", "web*", "--pool", tmpfs_pool)["domains"]
    assert [(one["name"], one["changed"], one["error"]) for one in several] == [
        ("web1", True, None),
        ("web2", True, None),
    ]
    listed = {row["name"]: row for row in virt_dmem_json("list", "--applied")["domains"]}
    assert {row["pool"] for row in listed.values()} == {tmpfs_pool}
    assert (listed["web1"]["size_bytes"], listed["web1"]["hotplug_max_bytes"]) == (64 * MIB, 0)
    assert "shut off and holds no memory; at its next start it takes 64 MiB" in virt_dmem_fails(
        "show", "web1", status=1
    )
    virt_dmem("apply", "db", "--pool", tmpfs_pool, "--dry-run")
    assert virt_dmem("unapply", "--all").endswith("2 domains: 2 restored, 0 unchanged, 0 refused.\n")
