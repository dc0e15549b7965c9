# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools on this machine's own kernel: 32 MiB of huge pages with HVO, taken, lost, found again, freed.

Each test has its own mounts and, by a lock, the host's huge pages, and leaves pages and settings as they were.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.real_pools import HUGE, HVO, SIZE, kill_at, killed, real_config, reboot, taken
from virt_dmem.config.schema import Config
from virt_dmem.errors import PoolBusy, PoolError, PoolExists, PoolNotFound, PoolShort
from virt_dmem.host import huge_pages, kernel, mounts, numa, processes
from virt_dmem.pools import manage, registry
from virt_dmem.pools.backends.hugetlbfs import Hugetlbfs
from virt_dmem.pools.savings import savings

pytestmark = pytest.mark.needs_hugepages

NOBODY = 65534


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(Hugetlbfs, "step_bytes", 4 * HUGE)
    with real_config() as config:
        yield config


@in_own_mount_namespace
def test_a_pool_is_created_and_destroyed(config: Config) -> None:
    before = taken()
    heard: list[tuple[int, int]] = []
    record = manage.create(config, "p", sizes=SIZE, report=lambda _doing, done, total: heard.append((done, total)))
    assert record.state == "ready"
    assert registry.records(config) == [record]
    assert taken() == before + 16
    assert heard == sorted(heard)
    assert heard[0] == (0, SIZE)
    assert heard[-1] == (SIZE, SIZE)
    assert len(heard) >= 5  # in steps, so that a kill leaves little in doubt
    top = config.pools_dir / "p"
    assert (top.stat().st_mode & 0o7777, top.stat().st_uid) == (0o711, 0)
    assert os.statvfs(top).f_bsize == HUGE
    assert sum(registry.capacity(record).values()) == SIZE
    found = mounts.mount_at(top)
    assert found is not None
    assert {"pagesize=2M", f"size={SIZE}", f"min_size={SIZE}"} <= set(found.options.split(","))

    manage.destroy(config, "p")
    assert taken() == before
    assert mounts.mount_at(top) is None
    assert not top.exists()
    assert HVO.read_text() == "0\n"
    with pytest.raises(PoolNotFound):
        manage.destroy(config, "p")


@in_own_mount_namespace
def test_the_saving_is_what_the_kernel_counted(config: Config) -> None:
    manage.create(config, "p", sizes=SIZE)
    (found,) = savings(config)
    assert found.size_bytes == SIZE
    assert found.gross_bytes == 16 * 32 * 1024
    assert found.measured == (kernel.struct_page_bytes() is not None)  # Linux 6.11
    if found.measured:
        assert found.metadata_left_bytes == 16 * 4 * 1024
        assert found.net_bytes == 16 * 28 * 1024
    manage.destroy(config, "p")
    assert savings(config) == []


@in_own_mount_namespace
def test_where_the_kernel_does_not_count_the_saving_is_called_an_estimate(config: Config, tmp_path: Path) -> None:
    counters = [line for line in Path("/proc/vmstat").read_text().splitlines() if "memmap" not in line]
    (tmp_path / "vmstat").write_text("\n".join(counters))  # as kernels before 6.11 have it
    subprocess.run(["mount", "--bind", tmp_path / "vmstat", "/proc/vmstat"], check=True)
    manage.create(config, "p", sizes=SIZE)
    (found,) = savings(config)
    assert not found.measured
    assert 0 <= found.net_bytes <= 16 * 28 * 1024
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_without_hvo_huge_pages_save_nothing(config: Config) -> None:
    manage.create(config, "p", sizes=SIZE, settings={"hvo": False})
    assert HVO.read_text() == "0\n"
    (found,) = savings(config)
    assert (found.net_bytes, found.metadata_left_bytes, found.measured) == (0, found.gross_bytes, True)
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_qemus_user_reaches_its_file_and_cannot_list_the_pool(config: Config) -> None:
    os.umask(0o077)
    manage.create(config, "p", sizes=SIZE)
    file = config.pools_dir / "p/libvirt-1/ram"
    file.parent.mkdir()
    file.parent.chmod(0o711)
    file.touch()
    os.chown(file, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    file.open("r+b").close()
    with pytest.raises(PermissionError):
        list(file.parents[1].iterdir())
    os.seteuid(0)
    os.setegid(0)
    file.unlink()
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_hvo_stays_on_until_the_last_pool_that_needs_it_is_gone(config: Config) -> None:
    manage.create(config, "a", sizes=HUGE)
    manage.create(config, "b", sizes=HUGE)
    manage.destroy(config, "a")
    assert HVO.read_text() == "1\n"
    manage.destroy(config, "b")
    assert HVO.read_text() == "0\n"


@in_own_mount_namespace
def test_hvo_that_the_administrator_switched_on_stays_on(config: Config) -> None:
    HVO.write_text("1\n")
    try:
        manage.create(config, "p", sizes=HUGE)
        manage.destroy(config, "p")
        assert HVO.read_text() == "1\n"
    finally:
        HVO.write_text("0\n")


@in_own_mount_namespace
def test_more_than_the_host_has_is_refused_and_nothing_has_changed(config: Config) -> None:
    before = taken()
    too_much = kernel.memory().total_bytes // HUGE * HUGE
    for backend in ("hugetlbfs", "tmpfs"):
        with pytest.raises(PoolShort, match="available"):
            manage.create(config, "p", sizes=too_much, page_size=None, backend=backend)
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])
    assert not (config.pools_dir / "p").exists()


@in_own_mount_namespace
def test_a_pool_that_the_kernel_gives_less_for_is_rolled_back_whole(config: Config) -> None:
    """The kernel is real, and never asked for more than 7 pages, as if it had no more."""
    before, real = taken(), huge_pages.set_persistent

    def stingy(page_size: int, node: int, pages: int, *, root: Path) -> None:
        real(page_size, node, min(pages, before + 7), root=root)

    huge_pages.set_persistent = stingy
    with pytest.raises(PoolShort, match="needs 32 MiB of node 0 in pages of 2 MiB, but got 14 MiB of node 0"):
        manage.create(config, "p", sizes={0: SIZE})
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])
    assert not (config.pools_dir / "p").exists()


@in_own_mount_namespace
def test_a_pool_whose_pages_another_takes_is_rolled_back_whole(config: Config, tmp_path: Path) -> None:
    before = taken()

    def steal(doing: str, _done: int, _total: int) -> None:
        if doing.startswith("Mounting"):
            now = huge_pages.counters(HUGE)
            options = f"pagesize=2M,min_size={(now.free - now.reserved - 11) * HUGE}"
            subprocess.run(["mount", "-t", "hugetlbfs", "-o", options, "thief", tmp_path], check=True)

    with pytest.raises(PoolShort, match="only 22 MiB of them are still free") as caught:
        manage.create(config, "p", sizes=SIZE, report=steal)
    assert "10 MiB of 32 MiB could not be given back" in caught.value.hint
    assert taken() == before + 5  # those of the other process, recorded for the pool all the same
    assert not (config.pools_dir / "p").exists()
    with pytest.raises(PoolError, match="10 MiB of 10 MiB could not be given back"):
        manage.destroy(config, "p")
    subprocess.run(["umount", tmp_path], check=True)
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


@in_own_mount_namespace
def test_destroy_frees_the_pages_that_were_taken_and_no_more(config: Config) -> None:
    manage.create(config, "p", sizes=SIZE)
    node = numa.nodes()[0].node
    now = huge_pages.counters(HUGE, node).persistent
    huge_pages.set_persistent(HUGE, node, now + 3)  # the administrator's own
    try:
        manage.destroy(config, "p")
        assert huge_pages.counters(HUGE, node).persistent == now + 3 - 16
    finally:
        huge_pages.set_persistent(HUGE, node, huge_pages.counters(HUGE, node).persistent - 3)


@pytest.mark.parametrize("at", [1, 3, 5, 6])
@pytest.mark.parametrize("undo", [manage.destroy, manage.mount])
@in_own_mount_namespace
def test_a_create_that_was_killed_is_undone(config: Config, at: int, undo: Callable[[Config, str], object]) -> None:
    before = taken()
    killed(lambda: manage.create(config, "p", sizes=SIZE, report=kill_at(at)))
    with pytest.raises(PoolExists):
        manage.create(config, "p", sizes=SIZE)
    undo(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])
    assert mounts.mount_at(config.pools_dir / "p") is None
    manage.create(config, "p", sizes=SIZE)
    manage.destroy(config, "p")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", [1, 3, 5, 7])
@in_own_mount_namespace
def test_a_kill_right_at_a_change_of_huge_pages_loses_none(config: Config, when: str, change: int) -> None:
    """Changes 1 to 4 take pages, 5 to 8 give them back; the record does not know yet whether it was done."""
    before, real, calls = taken(), huge_pages.set_persistent, [0]

    def die(page_size: int, node: int, pages: int, *, root: Path) -> None:
        calls[0] += 1
        if calls[0] != change or when == "after":
            real(page_size, node, pages, root=root)
        if calls[0] == change:
            os.kill(os.getpid(), signal.SIGKILL)

    def create_and_destroy() -> None:
        huge_pages.set_persistent = die
        manage.create(config, "p", sizes=SIZE)
        manage.destroy(config, "p")

    killed(create_and_destroy)
    (record,) = registry.records(config)
    assert record.step is not None
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


@pytest.mark.parametrize("at", [1, 2, 4, 5])
@in_own_mount_namespace
def test_a_destroy_that_was_killed_is_finished(config: Config, at: int) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    killed(lambda: manage.destroy(config, "p", report=kill_at(at)))
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text(), registry.records(config)) == (before, "0\n", [])


@in_own_mount_namespace
def test_a_pool_is_there_again_after_a_reboot(config: Config) -> None:
    before = taken()
    made = manage.create(config, "p", sizes=SIZE)
    reboot(config, "p")
    assert taken() == before
    assert sum(registry.capacity(registry.find(config, "p")).values()) == 0
    assert savings(config)[0].net_bytes == 0
    assert manage.mount(config, "p") == made
    assert taken() == before + 16
    assert sum(registry.capacity(made).values()) == SIZE
    assert manage.mount(config, "p") == made  # and may be asked for again
    assert taken() == before + 16
    manage.destroy(config, "p")
    assert HVO.read_text() == "0\n"


@pytest.mark.parametrize("at", [1, 3, 5, 6])
@in_own_mount_namespace
def test_a_boot_unit_that_was_killed_goes_on_where_it_was(config: Config, at: int) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    reboot(config, "p")
    killed(lambda: manage.mount(config, "p", report=kill_at(at)))
    record = manage.mount(config, "p")
    assert record is not None
    assert sum(registry.capacity(record).values()) == SIZE
    assert taken() == before + 16
    manage.destroy(config, "p")
    assert (taken(), HVO.read_text()) == (before, "0\n")


@in_own_mount_namespace
def test_a_pool_that_cannot_be_taken_again_keeps_its_record(config: Config) -> None:
    before = taken()
    manage.create(config, "p", sizes=SIZE)
    reboot(config, "p")

    def break_off(doing: str, _done: int, _total: int) -> None:
        if doing.startswith("Mounting"):
            raise PoolShort("nothing left", hint="try later")

    with pytest.raises(PoolShort):
        manage.mount(config, "p", report=break_off)
    assert taken() == before
    assert registry.find(config, "p").state == "mounting"
    assert manage.mount(config, "p") is not None
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_an_unmounted_pool_has_no_capacity_and_is_mounted_again(config: Config) -> None:
    before = taken()
    record = manage.create(config, "p", sizes=SIZE)
    subprocess.run(["umount", record.mount], check=True)
    assert sum(registry.capacity(record).values()) == 0
    manage.mount(config, "p")
    assert sum(registry.capacity(record).values()) == SIZE
    assert taken() == before + 16
    manage.destroy(config, "p")


@in_own_mount_namespace
def test_a_pool_with_files_is_not_destroyed(config: Config) -> None:
    record = manage.create(config, "p", sizes=SIZE)
    file = config.pools_dir / "p/libvirt-1/ram"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(PoolBusy, match=r"1 file \(libvirt-1/ram\)"):
        manage.destroy(config, "p")
    assert registry.find(config, "p") == record
    file.unlink()
    manage.destroy(config, "p")  # a stray directory, such as libvirtd makes, does not count


@in_own_mount_namespace
def test_a_pool_whose_memory_a_process_still_maps_is_not_destroyed(config: Config) -> None:
    record = manage.create(config, "p", sizes=SIZE)
    file = config.pools_dir / "p/ram"
    with file.open("w+b") as opened:
        os.ftruncate(opened.fileno(), HUGE)
        memory = mmap.mmap(opened.fileno(), HUGE)
    memory[0] = 1
    file.unlink()
    with pytest.raises(PoolBusy, match=rf"{processes.process_name(os.getpid())} \({os.getpid()}\)"):
        manage.destroy(config, "p")
    assert registry.find(config, "p") == record
    memory.close()
    manage.destroy(config, "p")
