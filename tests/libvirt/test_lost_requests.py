# SPDX-License-Identifier: GPL-2.0-or-later
"""A rewritten domain that lost virt-dmem's metadata does not start on a file, is told of, and can be restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lxml import etree

from tests.rig.command import checked, reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.reader import read_domain

OTHERS = "<other:tool xmlns:other='urn:other'/>"
MONITORS = pytest.mark.parametrize("options", [(), ("--no-monitor",)], ids=["monitor", "no monitor"])


def persistent(libvirtd: PrivateLibvirt, name: str) -> bytes:
    return libvirtd.virsh("dumpxml", "--inactive", "--security-info", name).encode()


def canonical(xml: bytes) -> bytes:
    return etree.tostring(etree.fromstring(xml, etree.XMLParser(remove_blank_text=True)), method="c14n2")


def alert(code: str = "request-lost") -> dict[str, Any] | None:
    return next((found for found in virt_dmem_json("alerts")["alerts"] if found["code"] == code), None)


def remove_metadata(libvirtd: PrivateLibvirt, name: str) -> None:
    libvirtd.virsh("metadata", name, NAMESPACE, "--remove", "--config")


def redefine(libvirtd: PrivateLibvirt, name: str) -> None:
    root = etree.fromstring(persistent(libvirtd, name))
    for element in root.findall("metadata"):
        root.remove(element)
    libvirtd.define(etree.tostring(root, encoding="unicode"))


def apply(libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, *options: str, **more: Any) -> tuple[str, bytes]:
    """Define and apply the domain ``lost``; return its UUID, and its XML before."""
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    uuid = libvirtd.define(domain_xml("lost", **more))
    before = persistent(libvirtd, "lost")
    virt_dmem("apply", "lost", "--pool", pool, *options)
    wait_for("it to be remembered", (STATE / "applied" / uuid).exists)
    return uuid, before


@MONITORS
@pytest.mark.parametrize("lose", [remove_metadata, redefine])
def test_it_is_told_of_does_not_start_and_is_restored_exactly(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str,
    lose: Callable[[PrivateLibvirt, str], None], options: tuple[str, ...],
) -> None:  # fmt: skip
    backing = "<hugepages/><nosharepages/>"
    uuid, before = apply(libvirtd, daemon, tmpfs_pool, *options, memory_backing=backing, metadata=OTHERS)
    lose(libvirtd, "lost")
    found = wait_for("the alert", alert)
    assert found["subject"] == uuid
    assert f"virt-dmem unapply {uuid}" in found["hint"]
    with pytest.raises(RigError, match="request for that was removed"):
        libvirtd.virsh("start", "--paused", "lost")
    check = checked()["domains"]
    assert check["status"] == "FAIL"
    assert "lost" in check["message"]
    daemon.restart()
    assert wait_for("the alert again", alert)["subject"] == uuid
    virt_dmem("unapply", "lost")
    wait_for("its end", lambda: alert() is None)
    expected = etree.fromstring(before)
    if lose is redefine:  # it left out all metadata
        for element in expected.findall("metadata"):
            expected.remove(element)
    assert canonical(persistent(libvirtd, "lost")) == canonical(etree.tostring(expected))
    assert not (STATE / "applied" / uuid).exists()


@MONITORS
def test_apply_puts_back_what_was_removed(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, options: tuple[str, ...]
) -> None:
    _, before = apply(libvirtd, daemon, tmpfs_pool, *options, memory_backing="<hugepages/>")
    applied = persistent(libvirtd, "lost")
    remove_metadata(libvirtd, "lost")
    virt_dmem("apply", "lost")
    assert canonical(persistent(libvirtd, "lost")) == canonical(applied)
    libvirtd.virsh("start", "--paused", "lost")
    assert reserved(tmpfs_pool) == 64 << 20
    wait_for("the end of the alert", lambda: alert() is None)
    virt_dmem("unapply", "lost")
    assert canonical(persistent(libvirtd, "lost")) == canonical(before)


def test_one_that_is_not_remembered_is_cleaned(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    daemon.stop()
    libvirtd.define(domain_xml("elsewhere"))
    before = persistent(libvirtd, "elsewhere")
    virt_dmem("apply", "elsewhere", "--pool", tmpfs_pool)
    remove_metadata(libvirtd, "elsewhere")
    daemon.start()
    wait_for("the alert", alert)
    with pytest.raises(RigError, match="request for that was removed"):
        libvirtd.virsh("start", "--paused", "elsewhere")
    virt_dmem("unapply", "elsewhere")
    assert canonical(persistent(libvirtd, "elsewhere")) == canonical(before)


def test_a_guest_that_lost_it_while_it_ran_returns_its_memory(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    apply(libvirtd, daemon, tmpfs_pool)
    libvirtd.virsh("start", "--paused", "lost")
    libvirtd.virsh("metadata", "lost", NAMESPACE, "--remove", "--config", "--live")
    libvirtd.virsh("destroy", "lost")
    assert reserved(tmpfs_pool) == 0, "at its release"


def test_a_domain_that_never_was_ours_starts_also_without_a_daemon(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    backing = "<source type='file'/><access mode='shared'/><allocation mode='ondemand'/>"
    libvirtd.define(domain_xml("theirs", memory_backing=backing))
    before = persistent(libvirtd, "theirs")
    virt_dmem("unapply", "theirs")
    assert persistent(libvirtd, "theirs") == before
    assert alert() is None
    daemon.stop()
    libvirtd.virsh("start", "--paused", "theirs")
    daemon.start()


def test_a_request_that_is_set_as_metadata_is_noticed(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.define(domain_xml("set"))
    libvirtd.virsh(
        "metadata", "set", NAMESPACE, "--key", "dmem", "--set", f"<memory pool='{tmpfs_pool}'/>", "--config"
    )
    wait_for("it to be applied", lambda: read_domain(persistent(libvirtd, "set")).applied)


@MONITORS
@pytest.mark.parametrize("verb", ["apply", "unapply"])
def test_a_request_that_is_set_in_the_place_of_that_of_a_rewrite_leaves_it_to_be_undone_exactly(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, options: tuple[str, ...], verb: str
) -> None:
    _, before = apply(libvirtd, daemon, tmpfs_pool, *options, memory_backing="<hugepages/>")
    request = f"<memory pool='{tmpfs_pool}'/>"
    libvirtd.virsh("metadata", "lost", NAMESPACE, "--key", "dmem", "--set", request, "--config")
    if verb == "apply":
        virt_dmem("apply", "lost", *options)
    libvirtd.virsh("start", "--paused", "lost")
    assert reserved(tmpfs_pool) == 64 << 20
    libvirtd.virsh("destroy", "lost")
    virt_dmem("unapply", "lost")
    assert canonical(persistent(libvirtd, "lost")) == canonical(before)


def test_one_that_was_given_other_memory_since_starts_and_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    apply(libvirtd, daemon, tmpfs_pool)
    root = etree.fromstring(persistent(libvirtd, "lost"))
    for element in (*root.findall("metadata"), *root.findall("memoryBacking")):
        root.remove(element)
    libvirtd.define(etree.tostring(root, encoding="unicode"))
    assert "what is left is virt-dmem's monitor" in wait_for("the alert", alert)["message"]
    libvirtd.virsh("start", "--paused", "lost")
    virt_dmem("unapply", "lost")
    assert b"virt-dmem" not in persistent(libvirtd, "lost")
    wait_for("its end", lambda: alert() is None)
