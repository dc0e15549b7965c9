# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and destroy guests by virsh: their memory is the pool's, and is freed in full."""

from __future__ import annotations

import mmap
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from lxml import etree

from tests.rig.command import checked, virt_dmem, virt_dmem_fails, virt_dmem_json
from tests.rig.daemon import LOG, Daemon
from tests.rig.domains import domain_xml
from tests.rig.guest import GuestImage
from tests.rig.mapping import a_process_that_maps
from tests.rig.private_libvirt import HOOK, PrivateLibvirt
from tests.rig.processes import RigError, wait_for
from virt_dmem.native.programs import HELPER

MIB = 1 << 20


def only_pool(name: str = "small") -> dict[str, int]:
    (pool,) = [pool for pool in virt_dmem_json("pool", "list")["pools"] if pool["name"] == name]
    return dict(pool)


def files_in(pool: str) -> list[Path]:
    """Return the files of domains, without pre-zeroed ones."""
    return [path for path in Path("/run/virt-dmem/pools", pool).glob("libvirt-*/*") if path.is_file()]


def smaps_of(pid: int, path: Path) -> str:
    """Return the smaps entry of the mapping with the inode of ``path``."""
    inode = path.stat().st_ino
    text = Path(f"/proc/{pid}/smaps").read_text()
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    (found,) = [entry for entry in entries if entry and entry.split()[4] == str(inode)]
    return found


def test_a_guest_gets_its_memory_from_the_pool_and_gives_it_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    uuid = libvirtd.define(domain_xml("alpha"))
    virt_dmem("apply", "alpha", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "alpha")

    shown = virt_dmem_json("show", "alpha")["domain"]
    assert (shown["uuid"], shown["phase"], shown["reserved_bytes"]) == (uuid, "running", 64 * MIB)
    (extent,) = shown["extents"]
    path = Path(extent["path"])
    assert path == Path("/run/virt-dmem/pools", tmpfs_pool, f"libvirt-{uuid}", "pc.ram")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
    assert found.st_size == 64 * MIB
    assert found.st_blocks * 512 == 64 * MIB, "every page was populated before the start"
    assert " rw-s " in smaps_of(libvirtd.qemu_pids()["alpha"], path)
    assert not list(Path("/var/lib/libvirt/qemu/ram").rglob("pc.ram")), "no path leads to it any more"
    assert only_pool()["reserved_bytes"] == 64 * MIB

    libvirtd.virsh("destroy", "alpha")
    assert only_pool()["reserved_bytes"] == 0
    assert files_in(tmpfs_pool) == []
    assert not any(domain["reserved_bytes"] for domain in virt_dmem_json("list")["domains"])
    assert "holds no memory" in virt_dmem_fails("show", "alpha", status=1)


def test_every_cell_of_a_guest_is_an_extent_of_its_own(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("cells", cells=["64MiB", "32MiB"], memory_backing="<hugepages/>"))
    virt_dmem("apply", "cells", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "cells")
    shown = virt_dmem_json("show", "cells")["domain"]
    assert {extent["alias"]: extent["size_bytes"] for extent in shown["extents"]} == {
        "ram-node0": 64 * MIB,
        "ram-node1": 32 * MIB,
    }
    pid = libvirtd.qemu_pids()["cells"]
    for extent in shown["extents"]:
        assert " rw-s " in smaps_of(pid, Path(extent["path"]))


@pytest.mark.needs_hugepages
def test_a_guest_on_huge_pages_is_mapped_by_huge_pages(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    libvirtd.define(domain_xml("huge"))
    virt_dmem("apply", "huge", "--pool", hugetlbfs_pool)
    libvirtd.virsh("start", "--paused", "huge")
    (extent,) = virt_dmem_json("show", "huge")["domain"]["extents"]
    entry = smaps_of(libvirtd.qemu_pids()["huge"], Path(extent["path"]))
    assert re.search(r"^KernelPageSize: +2048 kB$", entry, re.MULTILINE)
    assert only_pool(hugetlbfs_pool)["reserved_bytes"] == 64 * MIB
    libvirtd.virsh("destroy", "huge")
    assert only_pool(hugetlbfs_pool)["reserved_bytes"] == 0
    assert files_in(hugetlbfs_pool) == []


def test_a_linux_guest_boots_on_pool_memory_and_sees_all_of_it(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, image: GuestImage
) -> None:
    libvirtd.define(domain_xml("linux", memory="160MiB", image=image))
    virt_dmem("apply", "linux", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "linux")
    console = wait_for(
        "the guest", lambda: "MemTotal" in libvirtd.console("linux") and libvirtd.console("linux"), timeout=120
    )
    total = re.search(r"MemTotal: +(\d+) kB", console)
    assert total is not None
    assert 110 * 1024 < int(total[1]) <= 160 * 1024


def test_the_memory_of_a_guest_is_never_seen_by_the_next(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    secret = b"THE SECRET OF THE FIRST GUEST"
    for name in ("first", "second"):
        libvirtd.define(domain_xml(name, memory="192MiB"))
        virt_dmem("apply", name, "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "first")
    (extent,) = virt_dmem_json("show", "first")["domain"]["extents"]
    with Path(extent["path"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for at in range(0, len(memory), 4096):
            memory[at : at + len(secret)] = secret
    libvirtd.virsh("destroy", "first")
    libvirtd.virsh("start", "--paused", "second")
    (extent,) = virt_dmem_json("show", "second")["domain"]["extents"]
    with Path(extent["path"]).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory.find(secret) == -1


def test_a_guest_that_does_not_fit_is_refused_with_the_numbers_and_leaves_nothing(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    for name, memory in (("holder", "192MiB"), ("toomuch", "128MiB")):
        libvirtd.define(domain_xml(name, memory=memory))
        virt_dmem("apply", name, "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "holder")
    with pytest.raises(RigError) as refused:
        libvirtd.virsh("start", "--paused", "toomuch")
    said = str(refused.value)
    assert "128 MiB" in said, "what was asked"
    assert "64 MiB" in said, "what is free"
    assert "holder holds the most, 192 MiB" in said
    assert only_pool()["reserved_bytes"] == 192 * MIB
    assert [path.parent.name for path in files_in(tmpfs_pool)] == [f"libvirt-{libvirtd.virsh('domuuid', 'holder')}"]


def test_a_domain_that_was_not_rewritten_is_refused_with_the_command(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    daemon.config = "[libvirt]\nauto_apply = false\n"
    daemon.restart()
    metadata = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"
    uuid = libvirtd.define(domain_xml("raw", metadata=metadata))
    with pytest.raises(RigError, match=f"virt-dmem apply {uuid}"):
        libvirtd.virsh("start", "--paused", "raw")
    assert only_pool()["reserved_bytes"] == 0


def test_a_transient_domain_that_was_not_rewritten_is_refused_with_the_filter_which_works(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    metadata = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"
    bare = domain_xml("created", metadata=metadata)
    libvirtd.define(domain_xml("another"))
    with pytest.raises(RigError, match=r"is transient.* virt-dmem rewrite < XML"):
        libvirtd.virsh("create", "--paused", "/dev/stdin", stdin=bare)
    template = virt_dmem("rewrite", stdin=bare.encode())
    uuid = etree.fromstring(bare).findtext("uuid") or ""
    copy = re.sub("<uuid>.*</uuid>", "<uuid>00000000-1111-2222-3333-444444444444</uuid>", template)
    with pytest.raises(RigError, match=rf"was rewritten for another domain \({uuid}\).* virt-dmem rewrite < XML"):
        libvirtd.virsh("create", "--paused", "/dev/stdin", stdin=copy)
    libvirtd.virsh("create", "--paused", "/dev/stdin", stdin=virt_dmem("rewrite", stdin=copy.encode()))
    assert only_pool()["reserved_bytes"] == 64 * MIB


def test_without_the_daemon_our_guests_are_refused_and_all_others_start(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("ours"))
    virt_dmem("apply", "ours", "--pool", tmpfs_pool)
    libvirtd.define(domain_xml("other"))
    daemon.stop()
    with pytest.raises(
        RigError, match=r"does not answer at .*: Connection refused.*systemctl restart virt-dmemd\.socket"
    ):
        libvirtd.virsh("start", "--paused", "ours")
    libvirtd.virsh("start", "--paused", "other")
    assert libvirtd.state("other") == "paused"


def test_a_guest_lives_through_restarts_of_libvirtd_and_of_the_daemon(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("tough"))
    virt_dmem("apply", "tough", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "tough")
    pid = libvirtd.qemu_pids()["tough"]
    daemon.kill()
    libvirtd.kill()
    libvirtd.start()  # calls the hook with 'reconnect' while no daemon runs
    assert libvirtd.state("tough") == "paused"
    daemon.start()
    assert virt_dmem_json("show", "tough")["domain"]["phase"] == "running"
    assert libvirtd.qemu_pids()["tough"] == pid
    libvirtd.virsh("destroy", "tough")
    assert only_pool()["reserved_bytes"] == 0


def test_reconnect_succeeds_where_nothing_else_works() -> None:
    done = subprocess.run(
        [HOOK, "guest", "reconnect", "begin", "-"],
        input=b"<domain>https://virt-dmem.dev/xmlns/domain/1.0",
        env={"PATH": "/nowhere", "VIRT_DMEM_SOCKET": "/nowhere"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_memory_of_a_qemu_that_was_killed_comes_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("victim"))
    virt_dmem("apply", "victim", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "victim")
    os.kill(libvirtd.qemu_pids()["victim"], signal.SIGKILL)
    wait_for("the release", lambda: only_pool()["reserved_bytes"] == 0)
    assert files_in(tmpfs_pool) == []


def test_what_was_missed_while_the_daemon_was_away_is_found_when_it_is_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("gone"))
    virt_dmem("apply", "gone", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "gone")
    daemon.kill()
    libvirtd.virsh("destroy", "gone")  # stopped and release find no daemon
    daemon.start()
    wait_for("the reconciliation", lambda: only_pool()["reserved_bytes"] == 0)
    assert files_in(tmpfs_pool) == []


def test_memory_that_another_process_still_maps_is_kept_until_it_does_not(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("peer"))
    virt_dmem("apply", "peer", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "peer")
    (extent,) = virt_dmem_json("show", "peer")["domain"]["extents"]
    with a_process_that_maps(extent["path"]):
        libvirtd.virsh("destroy", "peer")
        assert only_pool()["reserved_bytes"] == 64 * MIB, "charged as long as a process maps it"
        assert files_in(tmpfs_pool) == [Path(extent["path"])]
        libvirtd.virsh("start", "--paused", "peer")  # beside it
        assert only_pool()["reserved_bytes"] == 128 * MIB
    wait_for("the other extent to be freed", lambda: only_pool()["reserved_bytes"] == 64 * MIB)
    libvirtd.virsh("destroy", "peer")
    assert files_in(tmpfs_pool) == []


def test_a_transient_domain_is_piped_through_rewrite(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    rewritten = virt_dmem("rewrite", "--pool", tmpfs_pool, stdin=domain_xml("fleeting").encode())
    libvirtd.virsh("create", "--paused", "/dev/stdin", stdin=rewritten)
    assert virt_dmem_json("show", "fleeting")["domain"]["phase"] == "running"
    libvirtd.virsh("destroy", "fleeting")
    assert only_pool()["reserved_bytes"] == 0


def test_a_guest_that_is_saved_gives_its_memory_back_and_takes_new_when_it_is_restored(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    mark = b"what the guest wrote before it was saved"
    libvirtd.define(domain_xml("sleeper"))
    virt_dmem("apply", "sleeper", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "sleeper")
    (extent,) = virt_dmem_json("show", "sleeper")["domain"]["extents"]
    with Path(extent["path"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[32 * MIB : 32 * MIB + len(mark)] = mark
    libvirtd.virsh("managedsave", "sleeper")
    assert only_pool()["reserved_bytes"] == 0
    assert files_in(tmpfs_pool) == []
    libvirtd.virsh("start", "--paused", "sleeper")
    (extent,) = virt_dmem_json("show", "sleeper")["domain"]["extents"]
    with Path(extent["path"]).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory[32 * MIB : 32 * MIB + len(mark)] == mark


@contextmanager
def hook_wrapped(script: str) -> Iterator[None]:
    """Replace the hook by a shell script; ``$real`` in it is the real one."""
    hook = Path("/etc/libvirt/hooks/qemu.d/50-virt-dmem")
    real = Path("/etc/libvirt/hooks/50-real")
    hook.rename(real)
    hook.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    hook.chmod(0o755)
    try:
        yield
    finally:
        real.rename(hook)


def test_a_pool_that_libvirtd_does_not_see_fails_the_start_at_once(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    """A dangling link would make QEMU spin forever, with the domain locked."""
    libvirtd.define(domain_xml("blind"))
    virt_dmem("apply", "blind", "--pool", tmpfs_pool)
    # the hook as libvirtd would run it if the pool were not in its mount namespace
    script = f"""
        [ "$2" = start ] || exec $real "$@"
        exec unshare -m sh -c 'umount /run/virt-dmem/pools/{tmpfs_pool} && exec "$@"' sh $real "$@"
    """
    with hook_wrapped(script):
        began = time.monotonic()
        with pytest.raises(RigError, match="does not resolve to the pool in libvirtd's mount namespace"):
            libvirtd.virsh("start", "--paused", "blind")
        assert time.monotonic() - began < 50
    assert only_pool()["reserved_bytes"] == 0
    assert files_in(tmpfs_pool) == []


def test_a_qemu_that_maps_other_memory_than_ours_does_not_get_through(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    libvirtd.define(domain_xml("swapped"))
    virt_dmem("apply", "swapped", "--pool", tmpfs_pool)
    script = """
        [ "$2" = start ] || exec $real "$@"
        $real "$@" || exit
        for link in /var/lib/libvirt/qemu/ram/*/pc.ram; do
            rm "$link" && truncate -s 64M "$link" && chown libvirt-qemu "$link"
        done
    """
    with hook_wrapped(script), pytest.raises(RigError, match="maps 0 B of the 64 MiB of memory"):
        libvirtd.virsh("start", "--paused", "swapped")
    assert libvirtd.state("swapped") == "shut off"
    assert only_pool()["reserved_bytes"] == 0
    assert files_in(tmpfs_pool) == []


def test_a_start_proves_that_libvirt_runs_a_hook_that_is_younger(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    hook = Path("/etc/libvirt/hooks/qemu.d") / HOOK.name

    def of_the_hook() -> str:
        return checked()["hook-in-force"]["status"]

    def is_doubted() -> bool:
        hook.chmod(0o755)  # its ctime is that of now
        return of_the_hook() == "WARN"

    wait_for("the hook to be younger", is_doubted)
    libvirtd.define(domain_xml("proof"))
    virt_dmem("apply", "proof", "--pool", tmpfs_pool)
    assert of_the_hook() == "WARN"
    libvirtd.virsh("start", "--paused", "proof")
    assert of_the_hook() == "PASS"


SLOW_HELPER = """#!/bin/sh
# a stand-in for the helper that takes long: with progress, or silently
for second in $(seq {seconds}); do
    sleep 1
    [ {speaks} = 1 ] && echo '{{"event":"progress","done":0,"total":67108864}}'
done
exec {helper} "$@"
"""


def define_slow(
    name: str, libvirtd: PrivateLibvirt, daemon: Daemon, pool: str, tmp_path: Path, *, speaks: bool
) -> None:
    """Define and apply a domain whose memory takes long to populate."""
    helper = tmp_path / "helper"
    helper.write_text(SLOW_HELPER.format(speaks=int(speaks), seconds=12 if speaks else 60, helper=HELPER))
    helper.chmod(0o755)
    daemon.config = f'[prefault]\nhelper = "{helper}"\nready = "off"\n'
    daemon.restart()
    libvirtd.define(domain_xml(name))
    virt_dmem("apply", name, "--pool", pool)


def open_files(daemon: Daemon) -> int:
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


def test_no_deadline_strikes_a_preparation_that_takes_long_and_moves(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    define_slow("large", libvirtd, daemon, tmpfs_pool, tmp_path, speaks=True)
    libvirtd.virsh("start", "--paused", "large")
    assert virt_dmem_json("show", "large")["domain"]["phase"] == "running"
    assert "interrupted while" not in LOG.read_text(), "reconcile looks every few seconds"


def test_a_preparation_that_hangs_fails_the_start_and_is_rolled_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    define_slow("stuck", libvirtd, daemon, tmpfs_pool, tmp_path, speaks=False)
    before = open_files(daemon)
    began = time.monotonic()
    with pytest.raises(RigError, match="timed out"):
        libvirtd.virsh("start", "--paused", "stuck")
    assert time.monotonic() - began < 40, "not by waiting for the helper"
    wait_for("the roll-back", lambda: only_pool()["reserved_bytes"] == 0)
    assert files_in(tmpfs_pool) == []
    wait_for("the end of the hook's connection", lambda: open_files(daemon) <= before)


def test_a_daemon_that_is_stopped_while_it_prepares_tells_the_start_and_rolls_back(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str, tmp_path: Path
) -> None:
    define_slow("given-up", libvirtd, daemon, tmpfs_pool, tmp_path, speaks=True)
    with ThreadPoolExecutor() as others:
        start = others.submit(libvirtd.virsh, "start", "--paused", "given-up")
        wait_for("the reservation", lambda: only_pool()["reserved_bytes"])
        assert daemon.stop() == 0
        with pytest.raises(RigError, match="shutting down; request cancelled"):
            start.result()
    assert files_in(tmpfs_pool) == [], "before the daemon ended"
    daemon.start()
    assert only_pool()["reserved_bytes"] == 0
