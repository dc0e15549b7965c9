# SPDX-License-Identifier: GPL-2.0-or-later
"""Raise alerts with a real libvirt, and end them when their cause is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import checked, virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.mapping import a_process_that_maps
from tests.rig.pools import create_pool
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for
from virt_dmem.domain_xml.reader import read_domain

REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"


def alerts() -> dict[str, dict[str, Any]]:
    """Return the active alerts by code; no test has two of one code."""
    return {alert["code"]: alert for alert in virt_dmem_json("alerts")["alerts"]}


def wait_for_alert(code: str) -> dict[str, Any]:
    return wait_for(f"the alert {code}", lambda: alerts().get(code))


def wait_for_the_end_of(code: str) -> None:
    wait_for(f"the end of {code}", lambda: code not in alerts())


def follows(daemon: Daemon) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))


@contextmanager
def without_hook(libvirtd: PrivateLibvirt) -> Iterator[None]:
    libvirtd.remove_hook()
    try:
        yield
    finally:
        libvirtd.install_hook(HOOK)


def test_a_host_in_order_has_no_alert(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    follows(daemon)
    libvirtd.define(domain_xml("good"))
    virt_dmem("apply", "good", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "good")
    assert alerts() == {}
    libvirtd.virsh("destroy", "good")
    assert alerts() == {}
    assert "alert" not in daemon.log.read_text()


def test_a_guest_that_started_without_the_hook_is_an_alert_until_it_ends(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    libvirtd.define(domain_xml("outside"))
    virt_dmem("apply", "outside", "--pool", tmpfs_pool)
    with without_hook(libvirtd):
        libvirtd.virsh("start", "--paused", "outside")
    alert = wait_for_alert("guest-outside-pool")
    assert alert["subject"] == libvirtd.virsh("domuuid", "outside")
    assert "outside" in alert["message"]
    assert "outside" in virt_dmem("alerts")
    (left,) = virt_dmem_json("reconcile", "--dry-run")["actions"]
    assert left.startswith("leave as it is: Domain outside asks for pool memory")
    check = checked()["alerts"]
    assert check["status"] == "WARN"
    assert "guest-outside-pool" in check["message"]
    daemon.restart()  # and a restarted daemon finds it as well
    assert wait_for_alert("guest-outside-pool")["subject"] == alert["subject"]
    libvirtd.virsh("destroy", "outside")
    wait_for_the_end_of("guest-outside-pool")
    log = daemon.log.read_text()
    assert log.count("alert guest-outside-pool:") == 2, "once by each daemon"
    assert log.count("alert guest-outside-pool ended") == 1


def test_a_guest_that_runs_when_it_is_applied_is_no_alert(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    libvirtd.define(domain_xml("before"))
    libvirtd.virsh("start", "--paused", "before")
    virt_dmem("apply", "before", "--pool", tmpfs_pool)
    assert alerts() == {}


def test_memory_attached_bypassing_virt_dmem_is_an_alert_until_it_is_gone(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    libvirtd.define(domain_xml("grown", cells=["64MiB"], max_memory="256MiB"))
    virt_dmem("apply", "grown", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "grown")
    assert alerts() == {}
    device = """<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>"""
    libvirtd.virsh("attach-device", "grown", "/dev/stdin", "--live", stdin=device)
    alert = wait_for_alert("memory-outside-pool")
    assert "128 MiB" in alert["message"]
    assert "dimm0" in alert["message"]
    assert virt_dmem_json("show", "grown")["domain"]["phase"] == "running", "the guest is left alone"
    libvirtd.virsh("destroy", "grown")
    wait_for_the_end_of("memory-outside-pool")


def test_an_extent_that_outlives_its_domain_is_an_alert_until_it_is_free(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("peer"))
    virt_dmem("apply", "peer", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "peer")
    (extent,) = virt_dmem_json("show", "peer")["domain"]["extents"]
    with a_process_that_maps(extent["path"]):
        libvirtd.virsh("destroy", "peer")
        alert = wait_for_alert("extent-quarantined")
        assert alert["subject"] == extent["path"]
        assert "64 MiB" in alert["message"]
        (left,) = virt_dmem_json("reconcile")["actions"]
        assert left.startswith("leave as it is: ")
        assert extent["path"] in left
    wait_for_the_end_of("extent-quarantined")


@pytest.mark.needs_tmpfs
def test_a_pool_that_was_shrunk_is_an_alert_and_gives_no_memory(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    for name in ("first", "second"):
        libvirtd.define(domain_xml(name))
        virt_dmem("apply", name, "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "first")
    mount = f"/run/virt-dmem/pools/{tmpfs_pool}"
    # another tmpfs on top of it, too small: a tmpfs cannot be made smaller than what is in it
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M,mode=0711", "none", mount], check=True)
    try:
        alert = wait_for_alert("pool-short-of-reservations")
        assert alert["subject"] == tmpfs_pool
        assert "has 16 MiB" in alert["message"]
        assert "hold 64 MiB" in alert["message"]
        with pytest.raises(RigError, match="free"):
            libvirtd.virsh("start", "--paused", "second")
        assert libvirtd.state("first") == "paused"
    finally:
        subprocess.run(["umount", mount], check=True)
    wait_for_the_end_of("pool-short-of-reservations")


def test_a_pool_that_was_unmounted_is_an_alert(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    libvirtd.define(domain_xml("lost"))
    virt_dmem("apply", "lost", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "lost")
    subprocess.run(["umount", "--lazy", f"/run/virt-dmem/pools/{tmpfs_pool}"], check=True)
    assert "has 0 B" in wait_for_alert("pool-short-of-reservations")["message"]
    assert libvirtd.state("lost") == "paused"


def test_a_tool_that_keeps_reverting_the_rewrite_is_an_alert_until_the_domain_is_applied(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    xml = domain_xml("fight", metadata=REQUEST)

    def applied() -> bool:
        return read_domain(libvirtd.virsh("dumpxml", "--inactive", "fight").encode()).applied

    for _ in range(3):
        libvirtd.define(xml)
        wait_for("it to be applied", applied)
    libvirtd.define(xml)
    assert "applied 3 times" in wait_for_alert("apply-fight")["message"]
    virt_dmem("apply", "fight")
    wait_for_the_end_of("apply-fight")


def test_a_request_that_cannot_be_fulfilled_is_told_of_until_its_pool_is_there(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    uuid = libvirtd.define(domain_xml("wish", metadata=REQUEST.replace("small", "samll")))
    alert = wait_for_alert("request-unfulfilled")
    assert (alert["subject"], "samll" in alert["message"], "wish" in alert["message"]) == (uuid, True, True)
    assert checked()["alerts"]["status"] == "WARN"
    check = checked()["domains"]
    assert (check["status"], "samll" in check["message"]) == ("FAIL", True)
    daemon.restart()
    assert wait_for_alert("request-unfulfilled")["subject"] == uuid
    create_pool("samll")
    try:
        wait_for_the_end_of("request-unfulfilled")
        libvirtd.virsh("start", "--paused", "wish")
        libvirtd.virsh("destroy", "wish")
    finally:
        virt_dmem("pool", "destroy", "samll")
    assert "samll" in wait_for_alert("request-unfulfilled")["message"], "it is applied, and its pool is gone"
    libvirtd.virsh("undefine", "wish")
    wait_for_the_end_of("request-unfulfilled")


def test_a_request_that_names_no_pool_where_there_are_two_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    create_pool("another")
    try:
        libvirtd.define(domain_xml("any", metadata=REQUEST.replace(" pool='small'", "")))
        assert "names no pool" in wait_for_alert("request-unfulfilled")["message"]
        libvirtd.define(domain_xml("any", uuid=libvirtd.virsh("domuuid", "any"), metadata=REQUEST))
        wait_for_the_end_of("request-unfulfilled")
    finally:
        virt_dmem("pool", "destroy", "another")


def test_an_element_that_only_looks_like_a_request_is_told_of(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    uuid = libvirtd.define(domain_xml("typo", metadata=REQUEST.replace("dmem:memory", "dmem:memroy")))
    assert wait_for_alert("request-unfulfilled")["subject"] == uuid
    assert "typo: The metadata of the domain have <memroy>" in checked()["domains"]["message"]
    daemon.restart()
    assert "<memroy>" in wait_for_alert("request-unfulfilled")["message"]
    libvirtd.define(domain_xml("typo", uuid=uuid, metadata=REQUEST))
    wait_for_the_end_of("request-unfulfilled")


def test_a_request_for_more_than_the_pool_has_is_told_of_until_the_pool_has_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    uuid = libvirtd.define(domain_xml("wide", memory="288MiB", metadata=REQUEST))
    alert = wait_for_alert("request-unfulfilled")
    assert (alert["subject"], "even if that is empty" in alert["message"]) == (uuid, True)
    check = checked()["domains"]
    assert (check["status"], "it does not fit pool small" in check["message"]) == ("FAIL", True)
    daemon.restart()
    assert wait_for_alert("request-unfulfilled")["subject"] == uuid
    virt_dmem("pool", "resize", "small", "--size", "320M")
    wait_for_the_end_of("request-unfulfilled")
    virt_dmem("pool", "resize", "small", "--size", "256M", "--yes")
    assert wait_for_alert("request-unfulfilled")["subject"] == uuid


def test_while_apply_is_paused_nothing_is_rewritten_unasked_and_afterwards_all_of_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    follows(daemon)
    virt_dmem("pause-apply")
    for name in ("unasked", "asked"):
        libvirtd.define(domain_xml(name, metadata=REQUEST))
    assert "paused until it is resumed" in alerts()["apply-paused"]["message"]
    command = [str(Path(sys.executable).with_name("virt-dmem")), "list"]
    assert "apply-paused" in subprocess.run(command, capture_output=True, text=True, check=True).stderr
    virt_dmem("apply", "asked")
    daemon.restart()
    follows(daemon)
    assert "apply-paused" in alerts(), "also after a restart"
    state = {name: libvirtd.virsh("dumpxml", "--inactive", name).encode() for name in ("unasked", "asked")}
    assert {name: read_domain(xml).applied for name, xml in state.items()} == {"unasked": False, "asked": True}
    virt_dmem("pause-apply", "--resume")

    def applied() -> bool:
        return read_domain(libvirtd.virsh("dumpxml", "--inactive", "unasked").encode()).applied

    wait_for("it to be applied", applied)
    assert alerts() == {}


def test_a_pause_ends_by_itself(libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str) -> None:
    follows(daemon)
    virt_dmem("pause-apply", "--for", "2s")
    libvirtd.define(domain_xml("waiting", metadata=REQUEST))
    assert " until 20" in alerts()["apply-paused"]["message"]

    def applied() -> bool:
        return read_domain(libvirtd.virsh("dumpxml", "--inactive", "waiting").encode()).applied

    assert not applied()
    wait_for("it to be applied", applied)
    assert alerts() == {}


def test_a_draining_pool_gives_nothing_and_takes_nothing_away(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    for name in ("runs", "comes"):
        libvirtd.define(domain_xml(name))
        virt_dmem("apply", name, "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "runs")
    assert "hold 64 MiB" in virt_dmem("pool", "drain", tmpfs_pool)
    daemon.restart()
    (pool,) = virt_dmem_json("pool", "list")["pools"]
    assert (pool["state"], pool["reserved_bytes"]) == ("draining", 64 << 20), "also after a restart"
    with pytest.raises(RigError, match=f"{tmpfs_pool} is draining"):
        libvirtd.virsh("start", "--paused", "comes")
    assert libvirtd.state("runs") == "paused"
    command = [str(Path(sys.executable).with_name("virt-dmem")), "pool", "drain", tmpfs_pool, "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.5)
        libvirtd.virsh("destroy", "runs")
        assert waiting.wait(60) == 0
        assert "no domain holds memory" in waiting.stdout.read()
    virt_dmem("pool", "drain", tmpfs_pool, "--undo")
    libvirtd.virsh("start", "--paused", "comes")
    assert "no pool 'nowhere'" in virt_dmem_fails("pool", "drain", "nowhere", status=1)


def test_a_pool_created_under_the_name_of_a_drained_one_gives_memory(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    virt_dmem("pool", "drain", tmpfs_pool)
    virt_dmem("pool", "destroy", tmpfs_pool)
    create_pool(tmpfs_pool)
    assert virt_dmem_json("pool", "list")["pools"][0]["state"] == "ready"
