# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of a pool: created for one domain alone, linked, checked, and removed only when no process maps them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.rig.mapping import a_process_that_maps
from virt_dmem.errors import ExtentError, NotMapped
from virt_dmem.pools import extent_files

SIZE = 1 << 20
UUID = "b31b41e6-66e0-4abb-873d-d1c0bfc91fb4"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    return tmp_path / "pool"


@pytest.mark.parametrize("alias", ["", ".", "..", "../x", "a/b", ".hidden", "a\0b"])
def test_an_alias_that_is_no_plain_file_name_is_refused(pool: Path, alias: str) -> None:
    with pytest.raises(ExtentError):
        extent_files.path_of(pool, UUID, alias)


def test_an_extent_is_roots_alone_and_of_the_size_asked(pool: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    made = extent_files.create(path, SIZE)
    found = path.lstat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_uid) == (SIZE, 0o600, os.getuid())
    assert (found.st_dev, found.st_ino) == (made.device, made.inode)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o711


def test_making_an_extent_again_never_keeps_old_bytes(pool: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    path.write_bytes(b"secret")
    extent_files.create(path, SIZE)
    assert path.read_bytes() == bytes(SIZE)


def test_a_daemon_without_file_descriptors_says_what_to_do_about_that(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)

    def none_left(*_args: object, **_more: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for work in (lambda: extent_files.create(path, SIZE), lambda: extent_files.grant_access(path, 1, 1)):
        with monkeypatch.context() as without:
            without.setattr(os, "open", none_left)
            with pytest.raises(ExtentError, match="Too many open files") as caught:
                work()
        assert "LimitNOFILE=" in caught.value.hint


def test_an_extent_is_in_use_while_a_process_maps_it_and_free_afterwards(pool: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    assert not extent_files.in_use(path)
    with a_process_that_maps(path):
        assert extent_files.in_use(path)
    assert not extent_files.in_use(path)


def test_where_a_file_system_has_no_leases_all_processes_are_looked_at(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel since 7.0 with hugetlbfs is a stand-in: the call fails as there; tests/numa has the real one."""
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)

    def without_leases(_fd: int, command: int, _argument: int) -> int:
        assert command == fcntl.F_SETLEASE
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", without_leases)
    assert not extent_files.in_use(path)
    with a_process_that_maps(path):
        assert extent_files.in_use(path)
    with subprocess.Popen(["sleep", "600"], stdin=path.open()) as process:
        assert extent_files.in_use(path)
        process.kill()
    assert not extent_files.in_use(path)
    with pytest.raises(OSError, match="not a regular file"):
        extent_files.in_use(Path("/dev/null"))


def test_a_link_replaces_a_link_and_nothing_else(pool: Path, tmp_path: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    name = tmp_path / "pc.ram"
    name.symlink_to("/nowhere")
    extent_files.link(path, name)
    assert name.resolve() == path
    name.unlink()
    name.write_text("a file of another")
    with pytest.raises(ExtentError, match="File exists"):
        extent_files.link(path, name)
    assert name.read_text() == "a file of another"


def test_a_domains_own_label_is_given_with_its_access_and_stays(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without SELinux: what is written is caught before it."""
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    given: list[tuple[bool, str | None]] = []
    monkeypatch.setattr(
        extent_files.selinux, "label_file", lambda file, label: given.append((Path(file).samefile(path), label))
    )
    extent_files.grant_access(path, 12345, 12345, "a:b:svirt_image_t:s0:c1,c2")
    extent_files.revoke_access(path)
    assert given == [(True, "a:b:svirt_image_t:s0:c1,c2"), (True, None)]
    assert path.stat().st_uid == 0


def test_a_symbolic_link_in_the_pool_is_never_followed(pool: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    trap = pool / "trap"
    trap.symlink_to(victim)
    with pytest.raises(ExtentError):
        extent_files.grant_access(trap, 12345, 12345)
    with pytest.raises(ExtentError):
        extent_files.file_id(trap)
    assert victim.stat().st_uid == os.getuid()


def test_removing_the_last_extent_removes_the_domains_directory(pool: Path) -> None:
    first, second = (extent_files.path_of(pool, UUID, alias) for alias in ("ram-node0", "ram-node1"))
    extent_files.create(first, SIZE)
    extent_files.create(second, SIZE)
    extent_files.remove(first)
    assert second.exists()
    extent_files.remove(second)
    extent_files.remove(second)
    assert list(pool.iterdir()) == []


def test_memory_that_is_mapped_whole_and_shared_is_accepted(pool: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    with a_process_that_maps(path) as pid:
        extent_files.check_mapped(pid, [("pc.ram", path, SIZE)])


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"private": True}, "privately"),
        ({"size": SIZE // 2}, "512 KiB of the 1 MiB"),
        ({"size": SIZE // 2, "offset": SIZE // 2}, "0 B of the 1 MiB"),
    ],
)
def test_memory_that_is_mapped_otherwise_is_refused(pool: Path, how: dict[str, int], complaint: str) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    with a_process_that_maps(path, **how) as pid, pytest.raises(NotMapped, match=complaint):  # type: ignore[arg-type]
        extent_files.check_mapped(pid, [("pc.ram", path, SIZE)])


def test_another_file_of_the_same_name_is_not_taken_for_ours(pool: Path) -> None:
    path = extent_files.path_of(pool, UUID, "pc.ram")
    extent_files.create(path, SIZE)
    with a_process_that_maps(path) as pid:
        path.unlink()
        extent_files.create(path, SIZE)
        with pytest.raises(NotMapped, match="0 B of the 1 MiB"):
            extent_files.check_mapped(pid, [("pc.ram", path, SIZE)])
