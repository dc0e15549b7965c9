# SPDX-License-Identifier: GPL-2.0-or-later
"""One bad file, row or record harms itself only: the others are reconciled, it is an alert, and is retried."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.rig.hostile_user import USER, a_writer_that_never_ends
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.processes import wait_for
from virt_dmem.allocation.ledger import Ledger
from virt_dmem.allocation.models import Phase
from virt_dmem.allocation.plan import ExtentPlan, Plan
from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig, PrefaultConfig
from virt_dmem.daemon.wiring import Components, build
from virt_dmem.host import kernel
from virt_dmem.monitoring.alert_codes import EXTENT_ENLARGED, LEDGER_DAMAGED, RECONCILE_FAILED
from virt_dmem.pools import extent_files, manage
from virt_dmem.runtime.deadline import DEADLINE_SECONDS

MIB = 1 << 20
UUIDS = [f"{number:08x}-edaf-9455-926a-d65c16db1809" for number in range(4)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    libvirt = tmp_path / "libvirt"
    libvirt.mkdir()
    (libvirt / "qemu.conf").write_text(f'memory_backing_dir = "{libvirt}"\n')
    return Config(
        daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")),
        libvirt=LibvirtConfig(config_file=str(libvirt / "qemu.conf"), run_dir=str(libvirt)),
        prefault=PrefaultConfig(ready="off"),
    )


def some_domains(config: Config, phase: Phase) -> list[Path]:
    """Let domains hold an extent each of a new pool; return their files."""
    manage.create(config, "p", sizes=64 * MIB, backend="tmpfs")
    ledger = Ledger(config.ledger_path, kernel.boot_id())
    paths = []
    for uuid in UUIDS:
        extent = ExtentPlan("pc.ram", "p", MIB, 4096, "none", ((-1, MIB),))
        path = config.pools_dir / "p" / f"libvirt-{uuid}" / "pc.ram"
        path.parent.mkdir()
        path.write_bytes(b"x" * MIB)
        ledger.reserve(Plan(uuid, f"vm-{uuid[:8]}", (extent,)), {"pc.ram": path}, {("p", -1): 64 * MIB})
        ledger.set_populated(ledger.extents_of(uuid))
        ledger.set_phase(uuid, phase)
        paths.append(path)
    ledger.close()
    return paths


def alerts(parts: Components) -> dict[str, str]:
    return {alert.subject: alert.code for alert in parts.alerts.refresh()}


def held(parts: Components) -> list[str]:
    return [reservation.uuid for reservation in parts.ledger.reservations()]


def reconciled(parts: Components) -> list[str]:
    return asyncio.run(parts.reconciler.host_stage())


@pytest.mark.parametrize("bad", ["directory", "fifo", "loop"])
@in_own_mount_namespace
def test_a_stopped_domain_whose_file_cannot_be_opened_is_kept_aside_and_the_others_are_freed(
    config: Config, bad: str
) -> None:
    paths = some_domains(config, Phase.STOPPED)
    paths[0].unlink()
    if bad == "directory":
        paths[0].mkdir()
    elif bad == "fifo":
        os.mkfifo(paths[0])
    else:
        paths[0].symlink_to(paths[0])
    parts = build(config)
    reconciled(parts)
    assert held(parts) == []
    assert [path for path in paths[1:] if path.exists()] == []
    reconciled(parts)
    assert RECONCILE_FAILED in alerts(parts).values() or not paths[0].is_symlink()
    if bad == "directory":
        paths[0].rmdir()
    else:
        paths[0].unlink(missing_ok=True)
    reconciled(parts)
    assert alerts(parts) == {}
    assert parts.service.list_pools()[0].reserved_bytes == 0


@in_own_mount_namespace
def test_an_unforeseen_error_harms_no_other_item(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    some_domains(config, Phase.STOPPED)
    parts = build(config)
    release_abandoned = parts.extents.release_abandoned

    async def faulty(reservation: object) -> None:
        if getattr(reservation, "uuid", "") == UUIDS[1]:
            raise RuntimeError("a fault of ours")
        await release_abandoned(reservation)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.extents, "release_abandoned", faulty)
    reconciled(parts)
    assert held(parts) == [UUIDS[1]]
    assert alerts(parts) == {f"domain {UUIDS[1]}": RECONCILE_FAILED}
    monkeypatch.undo()
    reconciled(parts)
    assert (held(parts), alerts(parts)) == ([], {})


@in_own_mount_namespace
def test_two_files_of_one_backend_in_use_are_both_charged_when_the_ledger_is_lost(config: Config) -> None:
    first = some_domains(config, Phase.RUNNING)[0]
    second = first.with_name("pc.ram+1")
    second.write_bytes(b"x" * MIB)
    config.ledger_path.unlink()
    pid = os.fork()
    if pid == 0:
        for path in (first, second):
            mmap.mmap(os.open(path, os.O_RDWR), 0)
        os.kill(os.getpid(), 19)  # SIGSTOP
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        parts = build(config)
        actions = reconciled(parts)
        assert len([action for action in actions if "charge" in action]) == 2
        assert parts.service.list_pools()[0].reserved_bytes == 2 * MIB
        assert RECONCILE_FAILED not in alerts(parts).values()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@in_own_mount_namespace
def test_a_damaged_record_of_one_pool_harms_no_other_and_is_an_alert_until_it_is_repaired(config: Config) -> None:
    some_domains(config, Phase.RUNNING)
    manage.create(config, "q", sizes=4 * MIB, backend="tmpfs")
    record = config.pool_records_dir / "p.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:50])
    parts = build(config)
    reconciled(parts)
    assert [pool.name for pool in parts.service.list_pools()] == ["q"]
    assert alerts(parts) == {str(record): RECONCILE_FAILED}, "no alert that the pool is short"
    record.write_bytes(whole)
    reconciled(parts)
    assert [(pool.name, pool.reserved_bytes) for pool in parts.service.list_pools()] == [("p", 4 * MIB), ("q", 0)]
    assert alerts(parts) == {}
    record.write_bytes(b"{")  # and while it is known
    reconciled(parts)
    assert parts.service.list_pools()[0].capacity_bytes == 64 * MIB, "as it was read last"
    assert alerts(parts) == {str(record): RECONCILE_FAILED}
    asyncio.run(parts.service.refresh_pools())
    assert parts.service.list_pools()[0].capacity_bytes == 64 * MIB


CHANGES = {
    "a phase that is none": "UPDATE reservation SET phase = 'runninh' WHERE uuid = ?",
    "a time that is none": "UPDATE reservation SET since = 'yesterday' WHERE uuid = ?",
    "a UUID that nobody has": "UPDATE reservation SET uuid = 'x' WHERE uuid = ?",
    "a state that is none": "UPDATE extent SET state = 'reado' WHERE uuid = ?",
    "a size that is none": "UPDATE extent SET size_bytes = 'x' WHERE uuid = ?",
    "a size below zero": "UPDATE extent SET size_bytes = -1 WHERE uuid = ?",
    "a policy that is none": "UPDATE extent SET policy = 'binc' WHERE uuid = ?",
    "a path that is none": "UPDATE extent SET path = 'x' WHERE uuid = ?",
    "a path outside all pools": "UPDATE extent SET path = '/etc/shadow' WHERE uuid = ?",
    "a path of another domain": "UPDATE extent SET path = replace(path, '1809/', '1808/') WHERE uuid = ?",
    "a path of another backend": "UPDATE extent SET path = path || 's' WHERE uuid = ?",
    "a pool in which its file is not": "UPDATE extent SET pool = 'q' WHERE uuid = ?",
    "a size that is of no pages": "UPDATE extent SET size_bytes = size_bytes + 1 WHERE uuid = ?",
    "a size below its shares": "INSERT INTO share SELECT id, 7, 4096 FROM extent WHERE uuid = ?",
    "a share that is too large": (
        "UPDATE share SET bytes = 1 << 60 WHERE extent = (SELECT id FROM extent WHERE uuid = ?)"
    ),
    "a version that is none": "PRAGMA user_version = 7",
    "a table that is gone": "DELETE FROM reservation WHERE uuid = ?; DROP TABLE share",
}


@pytest.mark.parametrize("change", CHANGES)
@in_own_mount_namespace
def test_a_ledger_with_one_wrong_value_is_set_aside_and_a_new_one_is_created(config: Config, change: str) -> None:
    some_domains(config, Phase.RUNNING)
    with closing(sqlite3.connect(config.ledger_path, isolation_level=None)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("INSERT INTO drained VALUES ('p')")
        for step in CHANGES[change].split("; "):
            database.execute(step, (UUIDS[0],) if "?" in step else ())
    parts = build(config)
    reconciled(parts)
    (aside,) = (path for path in config.ledger_path.parent.glob("*damaged*") if "-wal" not in path.name)
    assert alerts(parts) == {str(aside): LEDGER_DAMAGED}
    assert parts.service.list_pools()[0].state == "draining", "the administrator's setting is kept"
    for path in config.ledger_path.parent.glob("*damaged*"):
        path.unlink()
    assert alerts(parts) == {}


@in_own_mount_namespace
def test_whatever_bytes_of_the_ledger_are_wrong_the_daemon_starts(config: Config) -> None:
    some_domains(config, Phase.RUNNING)
    with closing(sqlite3.connect(config.ledger_path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole, chance = config.ledger_path.read_bytes(), random.Random(7)
    for _ in range(150):
        for path in config.ledger_path.parent.glob("ledger.sqlite*"):
            path.unlink()
        wrong = bytearray(whole)
        for _ in range(chance.choice([1, 1, 8])):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        config.ledger_path.write_bytes(wrong[: chance.choice([len(wrong)] * 9 + [chance.randrange(len(wrong))])])
        parts = build(config)
        held(parts)
        parts.alerts.refresh()
        parts.service.list_pools()
        asyncio.run(parts.close())


@pytest.mark.parametrize("beyond_the_end", [False, True])
@in_own_mount_namespace
def test_a_file_that_a_guest_enlarged_is_truncated_and_an_alert(config: Config, *, beyond_the_end: bool) -> None:
    path = some_domains(config, Phase.RUNNING)[0]
    if beyond_the_end:
        fallocate(path, 2 * MIB)
    else:
        with path.open("r+b") as file:
            file.truncate(3 * MIB)
            file.seek(2 * MIB)
            file.write(b"y" * 4096)
    parts = build(config)
    actions = reconciled(parts)
    assert [action for action in actions if "enlarged" in action]
    found = path.stat()
    assert (found.st_size, found.st_blocks * 512) == (MIB, MIB)
    assert path.read_bytes() == b"x" * MIB
    assert alerts(parts) == {str(path): EXTENT_ENLARGED}
    assert not [action for action in reconciled(parts) if "enlarged" in action]


def fallocate(path: Path, size_bytes: int) -> None:
    """Take memory for a file beyond its end, which its size does not show."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    keep_size = 1
    assert libc.fallocate(fd, keep_size, ctypes.c_long(0), ctypes.c_long(size_bytes)) == 0
    os.close(fd)


@in_own_mount_namespace
def test_a_process_that_writes_to_its_file_without_end_keeps_nobody_from_serving_the_others(
    config: Config, tmp_path: Path
) -> None:
    paths = some_domains(config, Phase.RUNNING)
    fuse = tmp_path / "fuse"
    fuse.mkdir()
    for above in (tmp_path, *tmp_path.parents):
        above.chmod(above.stat().st_mode | 0o011)
    os.chown(paths[0], USER, USER)
    with a_writer_that_never_ends(fuse, paths[0], size_bytes=2 * MIB):
        os.truncate(paths[1], 2 * MIB)
        parts = build(config)

        async def story() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS + 120):
                await parts.reconciler.host_stage()

        asyncio.run(story())
        assert paths[1].stat().st_size == MIB
        assert alerts(parts)[str(paths[0])] == RECONCILE_FAILED
    wait_for("the end of the writer", lambda: not extent_files.in_use(paths[0]))
    reconciled(parts)
    assert paths[0].stat().st_size == MIB


@in_own_mount_namespace
def test_a_pool_record_that_leads_to_another_directory_has_nothing_removed_there(
    config: Config, tmp_path: Path
) -> None:
    some_domains(config, Phase.RUNNING)
    manage.create(config, "q", sizes=64 * MIB, backend="tmpfs")
    starting = config.pools_dir / "q" / "libvirt-x" / "pc.ram"
    starting.parent.mkdir()
    starting.write_bytes(b"x")
    record = config.pool_records_dir / "p.json"
    whole = record.read_bytes()
    record.write_bytes(whole.replace(b'/pools/p"', b'/pools/q"'))
    assert record.read_bytes() != whole
    parts = build(config)
    assert [pool.name for pool in parts.service.list_pools()] == ["q"]
    reconciled(parts)
    assert alerts(parts)[str(record)] == RECONCILE_FAILED
