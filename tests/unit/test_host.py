# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers of the host: this machine where it has it, a fake tree where it has not."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from tests.namespace import in_own_mount_namespace
from tests.unit.fake_tree import BOOT, GIB, MIB, fake_process, fake_tree, put
from virt_dmem import host

UUID = "b31b41e6-66e0-4abb-873d-d1c0bfc91fb4"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_nodes_come_with_their_cpus_and_memory(tmp_path: Path, count: int) -> None:
    root = fake_tree(tmp_path, memory=[(node + 1) * GIB for node in range(count)])
    found = host.nodes(root=root)
    assert [node.node for node in found] == list(range(count))
    last = found[-1]
    assert last.cpus == (2 * count - 2, 2 * count - 1)
    assert last.memory == host.Memory(count * GIB, count * GIB // 2, count * GIB * 3 // 4)


def test_a_node_without_memory_is_a_node(tmp_path: Path) -> None:
    found = host.nodes(root=fake_tree(tmp_path, memory=[GIB, 0, GIB]))
    assert [node.memory.total_bytes for node in found] == [GIB, 0, GIB]


def test_a_node_without_cpus_is_told_from_one_without_memory(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[GIB, GIB, 0, 4 * GIB], without_cpus=[1, 3])
    assert host.nodes_without_cpus(root=root) == {1, 3}
    assert not host.nodes_without_cpus()


def test_a_kernel_without_numa_is_one_node_with_everything(tmp_path: Path) -> None:
    put(tmp_path / "sys/devices/system/cpu/online", "0-3\n")
    put(tmp_path / "proc/meminfo", "MemTotal: 1024 kB\nMemFree: 512 kB\nMemAvailable: 700 kB\n")
    for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages", "resv_hugepages"):
        put(tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB" / name, "3\n")
    assert host.nodes(root=tmp_path) == (
        host.Node(0, (0, 1, 2, 3), host.Memory(1024 * 1024, 512 * 1024, 700 * 1024)),
    )
    assert host.huge_pages(2 * MIB, 0, root=tmp_path).pages == 3


def test_this_machine_has_nodes_with_all_of_its_cpus_and_memory() -> None:
    found = host.nodes()
    assert sum(len(node.cpus) for node in found) == os.cpu_count()
    assert sum(node.memory.total_bytes for node in found) == host.memory().total_bytes
    assert all(0 < node.memory.free_bytes <= node.memory.available_bytes for node in found)


@pytest.mark.parametrize(
    ("text", "numbers"), [("", ()), ("0\n", (0,)), ("0-3", (0, 1, 2, 3)), ("0,2-3,8\n", (0, 2, 3, 8))]
)
def test_kernel_lists_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert host.parse_list(text) == numbers


def test_huge_page_sizes_are_those_the_kernel_offers(tmp_path: Path) -> None:
    assert host.huge_page_sizes(root=fake_tree(tmp_path)) == (2 * MIB, GIB)
    assert host.huge_page_sizes(root=tmp_path / "nothing") == ()


def test_huge_pages_are_counted_by_node_and_reservations_for_the_host(tmp_path: Path) -> None:
    root = fake_tree(tmp_path, memory=[GIB, GIB])
    base = root / "sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    put(base / "nr_hugepages", "10\n")
    put(base / "free_hugepages", "4\n")
    put(base / "surplus_hugepages", "3\n")
    put(root / "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "2\n")
    found = host.huge_pages(2 * MIB, 1, root=root)
    assert found == host.HugePages(10, 4, 3, 0)
    assert found.persistent == 7
    assert host.huge_pages(2 * MIB, root=root).reserved == 2


def test_struct_pages_are_counted_in_bytes_where_the_kernel_counts_them(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert host.struct_page_bytes(root=fake_tree(tmp_path / "new", struct_pages=(5, 7))) == 12 * page
    assert host.struct_page_bytes(root=fake_tree(tmp_path / "old", struct_pages=None)) is None


@pytest.mark.parametrize(("content", "expected"), [("0", False), ("1", True), (None, None)])
def test_hvo_is_on_off_or_not_there(tmp_path: Path, content: str | None, expected: bool | None) -> None:
    assert host.hvo(root=fake_tree(tmp_path, hvo=content)) is expected


def test_pressure_is_the_share_of_time_that_tasks_waited_and_nothing_where_the_kernel_is_silent(
    tmp_path: Path,
) -> None:
    assert host.pressure("cpu", root=tmp_path) == 0
    said = "some avg10=12.50 avg60=3.00 avg300=1.00 total=123\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=4\n"
    put(tmp_path / "proc/pressure/memory", said)
    assert host.pressure("memory", root=tmp_path) == 12.5
    assert 0 <= host.pressure("cpu") <= 100


def test_the_boot_id_is_a_uuid(tmp_path: Path) -> None:
    assert host.boot_id(root=fake_tree(tmp_path)) == BOOT
    assert len(host.boot_id()) == 36


def test_mounts_are_read_with_spaces_optional_fields_and_odd_bytes(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/mountinfo", "")
    (tmp_path / "proc/self/mountinfo").write_bytes(
        b"21 1 8:1 / / rw shared:1 master:2 - ext4 /dev/sda1 rw\n"
        b"22 21 0:40 /a\\040b /mnt/with\\040space\\134\\011 rw - tmpfs my\\040name rw,size=4k\n"
        b"23 21 0:41 / /mnt/\xff\x0c\xc2\x85 rw - hugetlbfs none rw\n"
        b"24 21 0:42 / /mnt/empty-source rw - tmpfs  rw\n"
    )
    found = host.mounts(root=tmp_path)
    assert found[1] == host.Mount(
        os.makedev(0, 40), "/a b", "/mnt/with space\\\t", "tmpfs", "my name", "rw,size=4k"
    )
    assert found[2].path == os.fsdecode(b"/mnt/\xff\x0c\xc2\x85")
    assert found[3].source == ""


def test_the_uppermost_mount_counts(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/mountinfo", "21 1 0:40 / /p rw - tmpfs a rw\n22 21 0:41 / /p rw - hugetlbfs b rw\n")
    found = host.mount_at(Path("/p"), root=tmp_path)
    assert found is not None
    assert found.fstype == "hugetlbfs"
    assert host.mount_at(Path("/q"), root=tmp_path) is None


def test_the_device_of_a_mount_is_what_stat_says() -> None:
    found = host.mount_at(Path("/proc"))
    assert found is not None
    assert found.device == Path("/proc").stat().st_dev


@in_own_mount_namespace
def test_a_mount_is_there_and_gone_as_soon_as_it_is(tmp_path: Path) -> None:
    """The table is read again when it changed, also by another process, and in a namespace of one's own."""
    for _ in range(3):
        assert host.mount_at(tmp_path) is None
        subprocess.run(["mount", "-t", "tmpfs", "here", tmp_path], check=True)
        found = host.mount_at(tmp_path)
        assert found is not None
        assert (found.fstype, found.source) == ("tmpfs", "here")
        subprocess.run(["mount", "-t", "ramfs", "above", tmp_path], check=True)
        found = host.mount_at(tmp_path)
        assert found is not None
        assert found.source == "above"
        subprocess.run(["umount", tmp_path], check=True)
        subprocess.run(["umount", tmp_path], check=True)
    assert host.mount_at(tmp_path) is None


def test_mappings_of_a_process_are_found_by_device_and_inode(tmp_path: Path) -> None:
    file = Path("/dev/shm") / f"virt-dmem-test-{os.getpid()}"
    file.write_bytes(bytes(3 * mmap.PAGESIZE))
    try:
        with file.open("r+b") as opened:
            memory = mmap.mmap(opened.fileno(), 2 * mmap.PAGESIZE, offset=mmap.PAGESIZE)
        found = file.stat()
        (area,) = [area for area in host.mappings(os.getpid()) if area.inode == found.st_ino]
        assert (area.device, area.offset, area.end - area.start) == (found.st_dev, mmap.PAGESIZE, 2 * mmap.PAGESIZE)
        assert area.perms == "rw-s"
        assert list(host.mappings(os.getpid(), of={(found.st_dev, found.st_ino)})) == [area]
        assert list(host.mappings(os.getpid(), of={(found.st_dev, found.st_ino // 10)})) == []
        assert host.processes_mapping(found.st_dev, found.st_ino) == (os.getpid(),)
        assert os.getpid() in host.processes_using(found.st_dev)
        memory.close()
        assert host.processes_mapping(found.st_dev, found.st_ino) == ()
    finally:
        file.unlink()


def test_mappings_survive_a_process_that_is_gone_and_a_file_name_with_a_newline(tmp_path: Path) -> None:
    fake_process(
        tmp_path,
        7,
        maps=(
            "7f0000000000-7f0000200000 rw-s 00200000 103:02 4711                       /a\\012b (deleted)\n"
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
        ),
    )
    first, _ = host.mappings(7, root=tmp_path)
    assert first == host.Mapping(0x7F0000000000, 0x7F0000200000, "rw-s", 2 * MIB, os.makedev(0x103, 2), 4711)
    assert list(host.mappings(7, of={(first.device, first.inode)}, root=tmp_path)) == [first]
    assert list(host.mappings(8, root=tmp_path)) == []
    assert host.process_name(8, root=tmp_path) == ""


def test_qemu_is_found_by_libvirts_pid_file_when_that_process_is_this_domain(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-uuid", UUID])
    fake_process(tmp_path, 71, cmdline=["qemu-system-x86_64", "-uuid", UUID.upper()])
    put(tmp_path / "run/guest.pid", "71\n")
    assert host.find_qemu(tmp_path / "run", "guest", UUID, root=tmp_path) == 71


def test_qemu_is_found_by_its_uuid_when_the_pid_file_is_stale_or_missing(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-uuid", UUID])
    fake_process(tmp_path, 71, cmdline=["sleep", "-uuid"])
    put(tmp_path / "run/guest.pid", "71\n")
    assert host.find_qemu(tmp_path / "run", "guest", UUID, root=tmp_path) == 70
    assert host.find_qemu(tmp_path / "run", "other", UUID, root=tmp_path) == 70
    assert host.find_qemu(tmp_path / "run", "guest", UUID.replace("b", "c"), root=tmp_path) is None


def test_another_s_uuid_among_what_a_domain_adds_to_its_command_line_does_not_count(tmp_path: Path) -> None:
    other = UUID.replace("b", "c")
    fake_process(
        tmp_path, 70, cmdline=["qemu", "-name", "guest=web", "-uuid", UUID, "-name", "guest=x", "-uuid", other]
    )
    assert host.find_qemu(tmp_path / "run", "web", UUID, root=tmp_path) == 70
    assert host.find_qemu(tmp_path / "run", "web", other, root=tmp_path) is None
    assert host.qemu_domain(70, root=tmp_path) == (UUID, "web")


@pytest.mark.parametrize("name", ["../run/pipe", "/run/pipe", "x\0y", "n" * 300])
def test_a_name_that_libvirt_would_not_take_leads_to_no_pid_file(tmp_path: Path, name: str) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu", "-uuid", UUID])
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/pipe.pid")  # whoever opened it would wait for ever
    assert host.find_qemu(tmp_path / "run", name.replace("/run", f"{tmp_path}/run"), UUID, root=tmp_path) == 70


def test_what_a_process_says_of_itself_is_cut_to_what_a_domain_can_be_called(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu", "-uuid", UUID, "-name", "guest=a,,b,debug-threads=on"])
    fake_process(tmp_path, 71, cmdline=["qemu", "-uuid", UUID, "-name", "guest=" + "n" * 100_000])
    fake_process(tmp_path, 72, cmdline=["qemu", "-uuid", "9" * 5000, "-name", "guest=a"])
    put(tmp_path / "proc/73/cmdline", "")
    (tmp_path / "proc/73/cmdline").write_bytes(b"qemu\0-uuid\0" + UUID.encode() + b"\0-name\0guest=a\xff\xedb\0")
    assert host.qemu_domain(70, root=tmp_path) == (UUID, "a,b")
    _, name = host.qemu_domain(71, root=tmp_path) or ("", "")
    assert len(name) < 256
    assert host.qemu_domain(72, root=tmp_path) is None
    fake_process(tmp_path, 74, cmdline=["qemu", "-uuid", UUID, "-name", "guest=a\nall is well"])
    assert host.qemu_domain(74, root=tmp_path) == (UUID, UUID)
    _, name = host.qemu_domain(73, root=tmp_path) or ("", "")
    assert name.encode().decode() == name


def test_a_qemu_that_waits_for_a_guest_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-incoming", "defer"])
    fake_process(tmp_path, 71, cmdline=["qemu-system-x86_64", "-name", "guest=-incoming"])
    assert [host.waits_for_guest(pid, root=tmp_path) for pid in (70, 71, 72)] == [True, False, False]


def test_a_real_process_is_found_by_the_uuid_on_its_command_line(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo ready; read -r line", "sh", "-uuid", UUID]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert host.find_qemu(tmp_path, "guest", UUID) == process.pid
        assert host.process_name(process.pid) == "sh"
