# SPDX-License-Identifier: GPL-2.0-or-later
"""Save, restore, revert and migrate guests; both ledgers are correct after each."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage
from tests.rig.pools import ALIKE, create_pool, without_pool
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, wait_for
from tests.rig.second_host import SecondHost
from virt_dmem.domain_xml.reader import is_managed, read_domain

MIB = 1 << 20


def held(domains: list[dict[str, Any]]) -> dict[str, int]:
    return {domain["name"]: domain["reserved_bytes"] // MIB for domain in domains}


def here() -> dict[str, int]:
    """Return the ledger's charges in MiB by domain."""
    return held(virt_dmem_json("list")["domains"])


def there(second: SecondHost) -> dict[str, int]:
    """Return the same of the other host."""
    return held(second.virt_dmem_json("list")["domains"])


def files_of(pool: str, root: Path = Path("/")) -> list[str]:
    return [path.name for path in root.glob(f"run/virt-dmem/pools/{pool}/libvirt-*/*")]


def start(libvirtd: PrivateLibvirt, pool: str, image: GuestImage, *args: str) -> str:
    uuid = libvirtd.define(domain_xml("mover", memory="192MiB", image=image))
    virt_dmem("apply", "mover", "--pool", pool, *args)
    libvirtd.virsh("start", "mover")
    wait_for("the guest", lambda: "uptime:" in libvirtd.console("mover"), timeout=120)
    return uuid


def uptime(libvirtd: PrivateLibvirt) -> float:
    found = re.findall(r"uptime: (\d+\.\d+)", libvirtd.console("mover"))
    return float(found[-1]) if found else 0


def goes_on(libvirtd: PrivateLibvirt, since: float) -> None:
    """Verify that the guest did not reboot: its uptime continues."""
    wait_for("the guest to go on", lambda: since + 1 < uptime(libvirtd) < since + 600)


def test_a_guest_that_is_saved_and_restored_goes_on(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, tmp_path: Path
) -> None:
    start(libvirtd, tmpfs_pool, image)
    before = uptime(libvirtd)
    libvirtd.virsh("save", "mover", "/var/lib/libvirt/mover.save")
    assert here() == {}
    assert files_of(tmpfs_pool) == []
    libvirtd.virsh("restore", "/var/lib/libvirt/mover.save")
    goes_on(libvirtd, before)
    assert here() == {"mover": 192}
    assert virt_dmem_json("show", "mover")["domain"]["phase"] == "running"


def test_a_guest_with_a_dimm_that_was_attached_is_saved_and_restored_with_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage
) -> None:
    start(libvirtd, tmpfs_pool, image, "--hotplug-max", "1G")
    alias = virt_dmem_json("attach", "mover", "--size", "32M")["change"]["alias"]
    before = uptime(libvirtd)
    libvirtd.virsh("managedsave", "mover")
    assert here() == {}
    libvirtd.virsh("start", "mover")
    goes_on(libvirtd, before)
    assert here() == {"mover": 224}
    names = [extent["alias"] for extent in virt_dmem_json("show", "mover")["domain"]["extents"]]
    assert names == ["ram-node0", alias]


def test_a_guest_restored_where_its_pool_is_not_gets_the_one_that_is(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage
) -> None:
    start(libvirtd, tmpfs_pool, image)
    before = uptime(libvirtd)
    libvirtd.virsh("save", "mover", "/var/lib/libvirt/mover.save")
    with without_pool(libvirtd, tmpfs_pool, instead="another"):
        with pytest.raises(RigError, match="comes with pool 'small', which is not on this host"):
            libvirtd.virsh("restore", "/var/lib/libvirt/mover.save")
        create_pool("another")
        libvirtd.virsh("restore", "/var/lib/libvirt/mover.save")
        goes_on(libvirtd, before)
        (extent,) = virt_dmem_json("show", "mover")["domain"]["extents"]
        assert extent["pool"] == "another"


def test_a_guest_restored_where_no_pool_is_gets_ordinary_memory_if_that_is_configured(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage
) -> None:
    start(libvirtd, tmpfs_pool, image)
    before = uptime(libvirtd)
    libvirtd.virsh("save", "mover", "/var/lib/libvirt/mover.save")
    with without_pool(libvirtd, tmpfs_pool):
        daemon.config = '[libvirt]\nincoming = "ordinary"\n'
        daemon.restart()
        libvirtd.virsh("restore", "/var/lib/libvirt/mover.save")
        goes_on(libvirtd, before)
        assert here() == {}
        assert not is_managed(libvirtd.virsh("dumpxml", "mover").encode())


@pytest.mark.needs_hugepages
@pytest.mark.needs_tmpfs
@pytest.mark.parametrize(("memory", "fits"), [("64MiB", True), ("65MiB", False)])
def test_a_guest_restored_on_pages_of_another_size_has_whole_ones_or_is_refused(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, exclusive_hugepages: None, memory: str, fits: bool
) -> None:
    libvirtd.define(domain_xml("mover", memory=memory))
    virt_dmem("apply", "mover", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "mover")
    libvirtd.virsh("save", "mover", "/var/lib/libvirt/mover.save")
    with without_pool(libvirtd, tmpfs_pool, instead="huge"):
        virt_dmem("pool", "create", "huge", "--size", "128M", "--page-size", "2M")
        if fits:
            libvirtd.virsh("restore", "/var/lib/libvirt/mover.save", "--paused")
            (extent,) = virt_dmem_json("show", "mover")["domain"]["extents"]
            assert (extent["pool"], extent["page_size"]) == ("huge", 2 * MIB)
        else:
            with pytest.raises(RigError, match="64 MiB or 66 MiB"):
                libvirtd.virsh("restore", "/var/lib/libvirt/mover.save", "--paused")
            assert here() == {}
            daemon.config = '[libvirt]\nincoming = "ordinary"\n'
            daemon.restart()
            libvirtd.virsh("restore", "/var/lib/libvirt/mover.save", "--paused")
            assert libvirtd.state("mover") == "paused"
            assert here() == {}


def test_a_running_guest_is_reverted_to_a_snapshot_of_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage
) -> None:
    """A snapshot with memory needs a qcow2 disk."""
    disk = Path("/var/lib/libvirt/images-mover.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    shutil.chown(disk, "libvirt-qemu")
    device = (
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{disk}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )
    libvirtd.define(domain_xml("mover", memory="192MiB", image=image, devices=device))
    virt_dmem("apply", "mover", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "mover")
    wait_for("the guest", lambda: "uptime:" in libvirtd.console("mover"), timeout=120)
    libvirtd.virsh("snapshot-create-as", "mover", "then")
    before = uptime(libvirtd)
    wait_for("time to pass", lambda: uptime(libvirtd) > before + 2)
    libvirtd.virsh("snapshot-revert", "mover", "then", "--running")
    goes_on(libvirtd, before - 1)
    assert here() == {"mover": 192}
    assert virt_dmem_json("show", "mover")["domain"]["phase"] == "running"
    libvirtd.virsh("destroy", "mover")
    libvirtd.virsh("snapshot-revert", "mover", "then", "--running")
    assert here() == {"mover": 192}
    libvirtd.virsh("destroy", "mover")
    libvirtd.virsh("undefine", "mover", "--snapshots-metadata")
    assert here() == {}


# To another host


@pytest.fixture
def second(libvirtd: PrivateLibvirt, daemon: Daemon) -> Iterator[SecondHost]:
    """Run another host, with the pool ``big`` of 512 MiB and none of this host's name."""
    with SecondHost() as second:
        second.virt_dmem("pool", "create", "big", "--backend", ALIKE, "--size", "512M")
        yield second
        for name in second.virsh("list", "--all", "--name").split():
            second.virsh("destroy", name, check=False)
            second.virsh("undefine", name, check=False)
        second.virt_dmem("reconcile")
        second.virt_dmem("pool", "destroy", "big")


def take_along(second: SecondHost, image: GuestImage) -> None:
    """Copy the guest's boot files to the other host."""
    boot = second.root / "var/lib/libvirt/boot"
    boot.mkdir(exist_ok=True)
    for file in (image.kernel, image.initrd):
        shutil.copy(file, boot / file.name)
        (boot / file.name).chmod(0o644)


def migrate(libvirtd: PrivateLibvirt, second: SecondHost, *args: str, check: bool = True) -> str:
    to = [second.uri, "tcp://127.0.0.1", "--listen-address", "127.0.0.1"]
    return libvirtd.virsh("migrate", "--live", *args, "mover", *to, check=check)


def console_there(second: SecondHost) -> str:
    return (second.root / "var/log/libvirt/consoles/mover.log").read_text("utf-8", "replace")


def goes_on_there(second: SecondHost, since: float) -> None:
    def now() -> float:
        found = re.findall(r"uptime: (\d+\.\d+)", console_there(second))
        return float(found[-1]) if found else 0

    wait_for("the guest to go on there", lambda: since + 1 < now() < since + 600)


def test_a_guest_moves_and_both_ledgers_are_right(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, second: SecondHost
) -> None:
    start(libvirtd, tmpfs_pool, image)
    take_along(second, image)
    before = uptime(libvirtd)
    migrate(libvirtd, second, "--persistent", "--undefinesource")
    goes_on_there(second, before)
    assert (here(), there(second)) == ({}, {"mover": 192})
    assert files_of(tmpfs_pool) == []
    assert files_of("big", second.root) == ["pc.ram"]
    assert "mover" not in libvirtd.virsh("list", "--all", "--name")

    def pool_there() -> bool:
        return read_domain(second.virsh("dumpxml", "--inactive", "mover").encode()).pool == "big"

    wait_for("the persistent XML to name the pool that is there", pool_there)
    second.virsh("destroy", "mover")
    second.virsh("start", "--paused", "mover")
    assert there(second) == {"mover": 192}


def test_a_move_that_is_cancelled_leaves_the_guest_here_and_nothing_there(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, second: SecondHost
) -> None:
    start(libvirtd, tmpfs_pool, image)
    take_along(second, image)
    before = uptime(libvirtd)
    to = [second.uri, "tcp://127.0.0.1", "--listen-address", "127.0.0.1", "--bandwidth", "1"]
    command = ["virsh", "-q", "-c", libvirtd.uri, "migrate", "--live", "mover", *to]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as moving:
        wait_for("memory there", lambda: there(second) == {"mover": 192})
        wait_for("memory to flow", lambda: "Memory processed" in libvirtd.virsh("domjobinfo", "mover", check=False))
        libvirtd.virsh("domjobabort", "mover")
        assert moving.wait(300) != 0
    goes_on(libvirtd, before)
    wait_for("it to be freed there", lambda: there(second) == {})
    assert here() == {"mover": 192}
    assert files_of("big", second.root) == []


def test_a_full_host_refuses_a_guest_before_it_moves(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, second: SecondHost
) -> None:
    start(libvirtd, tmpfs_pool, image)
    take_along(second, image)
    second.virsh("define", "/dev/stdin", stdin=domain_xml("large", memory="384MiB"))
    second.virt_dmem("apply", "large", "--pool", "big")
    second.virsh("start", "--paused", "large")
    before = uptime(libvirtd)
    assert "and 128 MiB is free" in migrate(libvirtd, second, check=False)
    goes_on(libvirtd, before)
    assert (here(), there(second)) == ({"mover": 192}, {"large": 384})


def test_a_daemon_there_that_dies_while_a_guest_moves_harms_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, second: SecondHost
) -> None:
    start(libvirtd, tmpfs_pool, image)
    take_along(second, image)
    before = uptime(libvirtd)
    to = [second.uri, "tcp://127.0.0.1", "--listen-address", "127.0.0.1", "--bandwidth", "20"]
    command = ["virsh", "-q", "-c", libvirtd.uri, "migrate", "--live", "mover", *to]
    with subprocess.Popen(command) as moving:
        wait_for(
            "QEMU there", lambda: [d["phase"] for d in second.virt_dmem_json("list")["domains"]] == ["running"]
        )
        second.kill_daemon()
        try:
            assert moving.wait(300) == 0
        finally:
            second.start_daemon()
    goes_on_there(second, before)
    assert (here(), there(second)) == ({}, {"mover": 192})
    assert second.virt_dmem_json("reconcile")["actions"] == []


def test_without_a_daemon_there_no_guest_moves(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, second: SecondHost
) -> None:
    start(libvirtd, tmpfs_pool, image)
    second.kill_daemon()
    assert "virt-dmemd does not answer" in migrate(libvirtd, second, check=False)
    second.start_daemon()
    assert (here(), there(second)) == ({"mover": 192}, {})
    assert libvirtd.state("mover") == "running"


def test_what_arrives_where_no_pool_is_is_undone_in_its_persistent_xml_too(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    paused(libvirtd, tmpfs_pool)
    with SecondHost(config='[libvirt]\nincoming = "ordinary"\n') as second:
        migrate(libvirtd, second, "--persistent", "--undefinesource")
        assert (here(), there(second)) == ({}, {})
        assert not is_managed(second.virsh("dumpxml", "mover").encode())

        def persistent() -> str:
            return second.virsh("dumpxml", "--inactive", "mover")

        wait_for("the persistent XML to be undone", lambda: not is_managed(persistent().encode()))
        assert "virt-dmem" not in persistent()
        assert "<source type='file'/>" not in persistent()
        second.virsh("destroy", "mover")
        second.virsh("start", "--paused", "mover")
        assert there(second) == {}


def paused(libvirtd: PrivateLibvirt, pool: str, *args: str) -> None:
    """Start ``mover`` without anything to boot, which suffices for a migration."""
    libvirtd.define(domain_xml("mover", memory="64MiB"))
    virt_dmem("apply", "mover", "--pool", pool, *args)
    libvirtd.virsh("start", "--paused", "mover")


@pytest.fixture
def userfaultfd() -> Iterator[None]:
    """Allow QEMU post-copy, as libvirt's qemu-postcopy-migration.sysctl does: for the host, one at a time."""
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd")
    with Path("/dev/shm/virt-dmem-test-userfaultfd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = allowed.read_text()
        allowed.write_text("1")
        yield
        allowed.write_text(before)


def test_a_guest_moves_by_post_copy(
    libvirtd: PrivateLibvirt,
    daemon: Daemon,
    tmpfs_pool: str,
    image: GuestImage,
    second: SecondHost,
    userfaultfd: None,
) -> None:
    start(libvirtd, tmpfs_pool, image)
    take_along(second, image)
    before = uptime(libvirtd)
    with ThreadPoolExecutor() as beside:
        moved = beside.submit(migrate, libvirtd, second, "--postcopy", "--bandwidth", "2")  # a minute without it
        wait_for("post-copy", lambda: libvirtd.virsh("migrate-postcopy", "mover", check=False) == "")
        moved.result()
    goes_on_there(second, before)
    assert "Postcopy requests" in libvirtd.virsh("domjobinfo", "mover", "--completed")
    assert (here(), there(second)) == ({}, {"mover": 192})
    assert virt_dmem_json("reconcile")["actions"] == second.virt_dmem_json("reconcile")["actions"] == []


def test_post_copy_to_memory_without_struct_pages_is_refused_before_it_starts(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, userfaultfd: None
) -> None:
    with SecondHost(module="tests.rig.no_struct_pages") as second:
        second.virt_dmem("pool", "create", "big", "--backend", "tmpfs", "--size", "512M")
        paused(libvirtd, tmpfs_pool)
        libvirtd.virsh("resume", "mover")
        said = migrate(libvirtd, second, "--postcopy", check=False)
        assert (
            "mover is about to arrive by post-copy migration, and the memory of pool big has no struct pages"
            in said
        )
        assert "Migrate it without --postcopy" in said
        assert (here(), there(second)) == ({"mover": 64}, {})
        assert libvirtd.state("mover") == "running"
        assert "mover" not in second.virsh("list", "--all", "--name")
        migrate(libvirtd, second)
        assert (here(), there(second)) == ({}, {"mover": 64})
        second.virsh("destroy", "mover")
        libvirtd.remove()
        paused(libvirtd, tmpfs_pool, "--no-monitor")
        libvirtd.virsh("resume", "mover")
        said = migrate(libvirtd, second, "--postcopy", check=False)
        assert "mover is about to arrive by post-copy migration" in said, "libvirt's own record tells"
        assert (here(), there(second)) == ({"mover": 64}, {})
        migrate(libvirtd, second)
        assert (here(), there(second)) == ({}, {"mover": 64})
        second.virsh("save", "mover", "/var/lib/libvirt/mover.save")
        second.virsh("restore", "/var/lib/libvirt/mover.save")
        assert (here(), there(second)) == ({}, {"mover": 64})


def test_a_guest_moves_clean_to_a_host_without_us(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage, tmp_path: Path
) -> None:
    start(libvirtd, tmpfs_pool, image, "--hotplug-max", "1G")
    live, persistent = tmp_path / "live.xml", tmp_path / "persistent.xml"
    for file, kind, how in ((live, "--migratable", ["--migratable"]), (persistent, "--inactive", [])):
        xml = libvirtd.virsh("dumpxml", kind, "--security-info", "mover")
        file.write_text(virt_dmem("rewrite", "--undo", *how, stdin=xml.encode()))
    with SecondHost(managed=False) as plain:
        take_along(plain, image)
        before = uptime(libvirtd)
        migrate(
            libvirtd,
            plain,
            "--persistent",
            "--undefinesource",
            "--xml",
            str(live),
            "--persistent-xml",
            str(persistent),
        )
        goes_on_there(plain, before)
        assert here() == {}
        for options in ([], ["--inactive"]):
            assert "virt-dmem" not in plain.virsh("dumpxml", *options, "mover")
        assert "<source type='file'/>" not in plain.virsh("dumpxml", "--inactive", "mover")
        plain.virsh("destroy", "mover")
        plain.virsh("undefine", "mover")
