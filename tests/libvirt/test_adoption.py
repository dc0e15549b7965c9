# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain that a rule takes is served from prepare to release with its XML as it is, all others are left alone."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import nova
from tests.rig.command import checked, reserved, virt_dmem, virt_dmem_json
from tests.rig.daemon import STATE, Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage
from tests.rig.pools import ALIKE
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for
from tests.rig.second_host import SecondHost

MIB = 1 << 20
UUID = "6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f0020"


def rule(pool: str, more: str = "") -> str:
    return nova.RULE.replace("POOL", pool) + more


def instance(
    name: str = "instance-00000001", flavor: str = "dmem.small", backing: str = nova.FILE_BACKED, **more: Any
) -> str:
    wanted = {"memory": "64MiB", "uuid": UUID, **more}
    return domain_xml(name, metadata=nova.metadata(flavor), memory_backing=backing, **wanted)


@pytest.fixture
def pool(daemon: Daemon, tmpfs_pool: str) -> Iterator[str]:
    """Provide a pool to which a rule adopts nova's domains with a flavor dmem.*."""
    daemon.config = f"{rule(tmpfs_pool)}[prefault]\nready_pressure = 100.0\n"
    daemon.restart()
    yield tmpfs_pool


def start(libvirtd: PrivateLibvirt, xml: str) -> None:
    libvirtd.define(xml)
    libvirtd.virsh("start", "--paused", UUID)


def extent() -> Path:
    (found,) = virt_dmem_json("show", UUID)["domain"]["extents"]
    return Path(found["path"])


def files_of(pool: str, root: Path = Path("/")) -> list[str]:
    return [path.name for path in root.glob(f"run/virt-dmem/pools/{pool}/libvirt-*/*")]


def alerts(code: str) -> list[dict[str, Any]]:
    return [alert for alert in virt_dmem_json("alerts")["alerts"] if alert["code"] == code]


def followed(daemon: Daemon) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))


def test_an_instance_is_served_from_prepare_to_release_with_its_xml_as_it_is(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    libvirtd.define(instance())
    before = libvirtd.virsh("dumpxml", "--inactive", "--security-info", UUID)
    libvirtd.virsh("start", "--paused", UUID)
    path = extent()
    assert path == Path("/run/virt-dmem/pools", pool, f"libvirt-{UUID}", "pc.ram")
    maps = Path(f"/proc/{libvirtd.qemu_pids()['instance-00000001']}/maps").read_text()
    assert f" {path.stat().st_ino} " in maps
    assert path.stat().st_uid == 0
    assert not list(Path("/var/lib/libvirt/qemu/ram").rglob("pc.ram"))
    assert reserved(pool) == 64 * MIB
    assert [domain["name"] for domain in virt_dmem_json("list")["domains"]] == ["instance-00000001"]
    assert libvirtd.virsh("dumpxml", "--inactive", "--security-info", UUID) == before
    assert virt_dmem_json("alerts")["alerts"] == []
    libvirtd.virsh("destroy", UUID)
    assert reserved(pool) == 0
    assert files_of(pool) == []
    assert libvirtd.virsh("dumpxml", "--inactive", "--security-info", UUID) == before


@pytest.mark.needs_hugepages
@pytest.mark.parametrize("kind", ["tmpfs_pool", "hugetlbfs_pool"])
def test_what_qemu_punches_at_its_end_is_not_taken_for_ready_memory_and_no_byte_of_it_crosses(
    libvirtd: PrivateLibvirt, daemon: Daemon, request: pytest.FixtureRequest, kind: str
) -> None:
    pool = request.getfixturevalue(kind)
    daemon.config = f"{rule(pool)}[prefault]\nready_pressure = 100.0\n"
    daemon.restart()
    start(libvirtd, instance())
    assert "discard-data" in Path(f"/proc/{libvirtd.qemu_pids()['instance-00000001']}/cmdline").read_text()
    path = extent()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:] = b"secret!!" * (8 * MIB)
    kept = os.open(path, os.O_RDONLY)  # the extent is quarantined, and shows what QEMU did to it
    try:
        libvirtd.virsh("destroy", UUID)
        assert os.fstat(kept).st_blocks == 0, "QEMU punched all of it"
        assert reserved(pool) == 64 * MIB, "and it belongs to nobody else"
    finally:
        os.close(kept)
    wait_for("the extent to be freed", lambda: reserved(pool) == 0)

    def shown() -> dict[str, Any]:
        return dict(virt_dmem_json("pool", "show", pool)["pool"])

    wait_for("as much to be pre-zeroed anew", lambda: shown()["ready_bytes"] == 64 * MIB)
    assert shown()["pinned_bytes"] == 0
    present = sum(file.stat().st_blocks * 512 for file in Path(shown()["mount"]).rglob("*") if file.is_file())
    assert present == 64 * MIB, "ready memory is there"
    libvirtd.virsh("start", "--paused", UUID)
    assert extent().stat().st_blocks * 512 == 64 * MIB, "populated before QEMU looked"
    with extent().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert not any(memory.find(word) >= 0 for word in (b"secret!!", b"!!secret"))


def test_an_instance_that_is_killed_gives_its_memory_back_though_nothing_was_punched(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    start(libvirtd, instance())
    os.kill(libvirtd.qemu_pids()["instance-00000001"], signal.SIGKILL)
    wait_for("the release", lambda: reserved(pool) == 0)
    assert files_of(pool) == []


@pytest.mark.parametrize(
    "xml",
    [instance(flavor="m1.small"), domain_xml("other", uuid=UUID, memory_backing=nova.FILE_BACKED)],
    ids=["another flavor", "not nova's"],
)
def test_a_domain_that_no_rule_takes_runs_as_before_and_even_without_the_daemon(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, xml: str
) -> None:
    daemon.stop()
    start(libvirtd, xml)
    assert libvirtd.state(UUID) == "paused"
    daemon.start()
    followed(daemon)
    assert reserved(pool) == 0
    assert virt_dmem_json("alerts")["alerts"] == []


def test_without_the_daemon_an_instance_that_a_rule_takes_does_not_start_on_a_file(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    daemon.stop()
    with pytest.raises(RigError, match="does not answer at"):
        start(libvirtd, instance())


@pytest.mark.parametrize("backing", ["<hugepages/>", "<source type='memfd'/>", "<nosharepages/>"])
def test_an_instance_with_other_memory_is_left_alone_or_rejected_as_the_rule_says(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, backing: str
) -> None:
    libvirtd.define(instance(backing=backing))
    if "hugepages" not in backing:  # of which the host may have none
        libvirtd.virsh("start", "--paused", UUID)
        assert reserved(pool) == 0
        assert virt_dmem_json("alerts")["alerts"] == []
        libvirtd.virsh("destroy", UUID)
    daemon.config = rule(pool, 'unsuitable = "refuse"')
    daemon.restart()
    with pytest.raises(
        RigError, match=r"Rule nova of .*adopt.* takes domain instance-00000001.* file_backed_memory"
    ):
        libvirtd.virsh("start", "--paused", UUID)
    assert wait_for("the alert", lambda: alerts("request-unfulfilled"))[0]["subject"] == UUID
    libvirtd.define(instance())
    wait_for("its end", lambda: not alerts("request-unfulfilled"))


def test_a_hard_reboot_and_a_resize_that_make_the_xml_anew_are_charged_right(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    start(libvirtd, instance())
    for memory, held in (("64MiB", 64), ("128MiB", 128)):
        libvirtd.virsh("destroy", UUID)
        libvirtd.virsh("undefine", UUID)
        start(libvirtd, instance(memory=memory))
        assert reserved(pool) == held * MIB
    libvirtd.virsh("destroy", UUID)
    libvirtd.define(instance(flavor="m1.small"))
    libvirtd.virsh("start", "--paused", UUID)
    assert reserved(pool) == 0
    libvirtd.virsh("destroy", UUID)


def test_what_a_rule_decided_at_the_start_holds_until_the_end(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    start(libvirtd, instance())
    daemon.config = ""
    daemon.restart()
    assert not (STATE / "adopt").exists()
    assert reserved(pool) == 64 * MIB
    libvirtd.virsh("destroy", UUID)
    assert reserved(pool) == 0, "its release was heard, and not only found by reconcile"
    libvirtd.virsh("start", "--paused", UUID)
    assert reserved(pool) == 0
    daemon.config = rule(pool)
    daemon.restart()
    (alert,) = wait_for("the alert", lambda: alerts("guest-outside-pool"))
    assert "is taken by rule nova but runs outside of any pool" in alert["message"]
    libvirtd.virsh("destroy", UUID)
    libvirtd.virsh("start", "--paused", UUID)
    assert reserved(pool) == 64 * MIB
    wait_for("its end", lambda: not alerts("guest-outside-pool"))


def test_an_interrupted_start_is_found_by_the_next_one_whatever_its_xml_is(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    libvirtd.define(instance())
    hook = Path("/etc/libvirt/hooks/qemu.d/50-virt-dmem")
    later = hook.parent / "90-failing"
    later.write_text('#!/bin/sh\n[ "$2" = prepare ] && kill -9 $(cat /run/libvirt/libvirtd.pid)\nexit 0\n')
    later.chmod(0o755)
    libvirtd.virsh("start", "--paused", UUID, check=False)
    later.unlink()
    assert reserved(pool) == 64 * MIB
    libvirtd.kill()
    libvirtd.start()
    libvirtd.define(instance(flavor="m1.small"))
    libvirtd.virsh("start", "--paused", UUID)
    wait_for("it to be free", lambda: reserved(pool) == 0)
    assert files_of(pool) == []


def test_a_daemon_that_dies_and_comes_back_knows_its_instances(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    start(libvirtd, instance())
    daemon.kill()
    daemon.start()
    assert virt_dmem_json("show", UUID)["domain"]["phase"] == "running"
    assert virt_dmem_json("reconcile")["actions"] == []
    daemon.kill()
    libvirtd.virsh("destroy", UUID)  # stopped and release find no daemon
    daemon.start()
    wait_for("the reconciliation", lambda: reserved(pool) == 0)
    assert files_of(pool) == []


def test_memory_is_attached_to_an_instance_from_the_pool_that_it_has(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    virt_dmem("pool", "create", "another", "--backend", "tmpfs", "--size", "64M")
    try:
        daemon.config = f'default_pool = "another"\n{rule(pool)}'
        daemon.restart()
        start(libvirtd, instance(cells=["64MiB"], max_memory="1GiB"))
        change = virt_dmem_json("attach", UUID, "--size", "32M")["change"]
        assert change["state"] == "attached", change
        assert {one["pool"] for one in virt_dmem_json("show", UUID)["domain"]["extents"]} == {pool}
        assert virt_dmem_json("alerts")["alerts"] == []
        libvirtd.virsh("destroy", UUID)
        assert reserved(pool) == 0
    finally:
        libvirtd.remove()
        virt_dmem("pool", "destroy", "another")


def test_an_instance_that_is_suspended_to_disk_gives_its_memory_back_and_gets_new(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    start(libvirtd, instance())
    with extent().open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[32 * MIB : 32 * MIB + 8] = b"the mark"
    libvirtd.virsh("managedsave", UUID)
    assert (reserved(pool), files_of(pool)) == (0, [])
    libvirtd.virsh("start", "--paused", UUID)
    assert reserved(pool) == 64 * MIB
    with extent().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory[32 * MIB : 32 * MIB + 8] == b"the mark"


def test_a_rule_without_its_pool_is_told_of_by_every_start_by_an_alert_and_by_check(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    daemon.config = rule("missing")
    daemon.restart()
    followed(daemon)
    with pytest.raises(RigError, match=r"Rule nova of .* its pool cannot be used: There is no pool 'missing'"):
        start(libvirtd, instance())
    (alert,) = wait_for("the alert", lambda: alerts("request-unfulfilled"))
    assert alert["subject"] == UUID
    found = checked()
    assert found["adoption"]["status"] == "FAIL"
    assert found["domains"]["status"] == "FAIL"
    daemon.config = rule(pool)
    daemon.restart()
    followed(daemon)
    assert alerts("request-unfulfilled") == []
    found = checked()
    assert found["adoption"]["message"] == "1 rule adopts domains."
    assert found["domains"]["status"] == "PASS"
    Path("/etc/virt-dmem/virt-dmem.toml").write_text("")
    assert "systemctl restart" in checked()["adoption"]["hint"]


def test_memory_of_an_instance_that_is_shut_off_is_pre_zeroed(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    followed(daemon)
    libvirtd.define(instance())
    wait_for(
        "its memory", lambda: virt_dmem_json("pool", "show", pool)["pool"]["ready_bytes"] == 64 * MIB, timeout=60
    )


def test_apply_and_rewrite_say_that_an_instance_needs_neither(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    libvirtd.define(instance())
    before = libvirtd.virsh("dumpxml", "--inactive", UUID)
    shown = virt_dmem_json("apply", UUID)
    assert (shown["changed"], shown["domain"]["applied"]) == (False, True)
    assert libvirtd.virsh("dumpxml", "--inactive", UUID) == before
    assert virt_dmem("rewrite", stdin=before.encode()) == before
    shown = virt_dmem_json("rules", UUID)
    assert (shown["outcome"], shown["rule"], shown["problem"]) == ("adopted", "nova", "")
    virt_dmem("apply", UUID, "--pool", pool)
    assert virt_dmem_json("rules", UUID)["outcome"] == "own-request"
    virt_dmem("unapply", UUID)
    assert libvirtd.virsh("dumpxml", "--inactive", UUID) == before


def test_an_applied_domain_that_a_rule_takes_and_that_loses_its_request_is_adopted(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str
) -> None:
    followed(daemon)
    libvirtd.define(instance())
    virt_dmem("apply", UUID, "--pool", pool)
    wait_for("it to be remembered", (STATE / "applied" / UUID).exists)
    libvirtd.virsh("metadata", UUID, "https://virt-dmem.dev/xmlns/domain/1.0", "--remove", "--config")
    libvirtd.virsh("start", "--paused", UUID)
    assert reserved(pool) == 64 * MIB
    assert virt_dmem_json("alerts")["alerts"] == []


@pytest.fixture
def second() -> Iterator[SecondHost]:
    """Run another host with a rule of its own, and with the pool ``big``."""
    with SecondHost(config=rule("big")) as second:
        second.virt_dmem("pool", "create", "big", "--backend", ALIKE, "--size", "512M")
        yield second
        second.virsh("destroy", "mover", check=False)
        second.virsh("undefine", "mover", check=False)
        second.virt_dmem("reconcile")
        second.virt_dmem("pool", "destroy", "big")


def test_an_instance_moves_between_two_hosts_with_rules_and_both_ledgers_are_right(
    libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, image: GuestImage, second: SecondHost
) -> None:
    libvirtd.define(instance("mover", image=image, memory="192MiB"))
    libvirtd.virsh("start", "mover")
    wait_for("the guest", lambda: "uptime:" in libvirtd.console("mover"), timeout=120)
    (second.root / "var/lib/libvirt/boot").mkdir(exist_ok=True)
    for file in (image.kernel, image.initrd):
        copy = shutil.copy(file, second.root / "var/lib/libvirt/boot" / file.name)
        Path(copy).chmod(0o644)
    to = [second.uri, "tcp://127.0.0.1", "--listen-address", "127.0.0.1"]
    libvirtd.virsh("migrate", "--live", "--persistent", "--undefinesource", "mover", *to)
    console = second.root / "var/log/libvirt/consoles/mover.log"
    wait_for("the guest to go on there", lambda: "uptime:" in console.read_text("utf-8", "replace"))
    held = second.virt_dmem_json("list")["domains"]
    assert (reserved(pool), [(one["name"], one["reserved_bytes"]) for one in held]) == (0, [("mover", 192 * MIB)])
    assert (files_of(pool), files_of("big", second.root)) == ([], ["pc.ram"])
    assert second.virt_dmem_json("alerts")["alerts"] == []
    second.virsh("destroy", "mover")
    assert second.virt_dmem_json("list")["domains"] == []
