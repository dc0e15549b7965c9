# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories that others own: what is trusted, and what their owner gains by changing names meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.hostile_user import USER, a_swapper, hostile_names
from virt_dmem.config.schema import Config, DaemonConfig, LibvirtConfig
from virt_dmem.errors import ExtentError, PoolError
from virt_dmem.host import dirfd
from virt_dmem.hypervisor import paths
from virt_dmem.monitoring.metrics import write_textfile
from virt_dmem.pools import extent_files, manage

UUID = "b31b41e6-66e0-4abb-873d-d1c0bfc91fb4"
OTHER_USER = USER + 1
ROUNDS = 30
"""How often each outcome of a race has to be seen."""
DEADLINE_SECONDS = 60

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of several users")


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that is root's alone, and that every user can pass through."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def backing(top: Path) -> Path:
    """QEMU's user's directory, as libvirt makes it."""
    return made(top / "qemu" / "ram", USER)


@pytest.fixture
def domain(backing: Path) -> Path:
    """The directory of a domain."""
    return made(backing / "3-vm", USER)


@pytest.fixture
def outside(top: Path) -> Path:
    """A directory of root's that virt-dmem does not use."""
    path = top / "outside"
    path.mkdir()
    return path


@pytest.fixture
def config(top: Path, backing: Path) -> LibvirtConfig:
    (top / "qemu.conf").write_text(f'memory_backing_dir = "{backing}"\n')
    return LibvirtConfig(config_file=str(top / "qemu.conf"))


@pytest.fixture
def extent(top: Path) -> Path:
    path = top / "pools" / "p" / f"libvirt-{UUID}" / "pc.ram"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"memory")
    return path


def made(path: Path, owner: int) -> Path:
    if not path.parent.exists():
        made(path.parent, owner)
    path.mkdir()
    os.chown(path, owner, owner)
    return path


def is_opened(path: Path, **how: object) -> bool:
    try:
        with dirfd.opened(path, **how):  # type: ignore[arg-type]
            return True
    except OSError:
        return False


# What is trusted


def test_links_are_followed_where_only_root_can_have_made_them(top: Path, domain: Path) -> None:
    (top / "elsewhere").symlink_to("qemu/../qemu/ram")
    with pytest.raises(OSError, match=r"'\.\.'"), dirfd.opened(top / "elsewhere"):
        pass
    (top / "memory").symlink_to(top / "qemu/ram")
    (top / "again").symlink_to("memory")
    for path in (top / "memory", top / "again"):
        with dirfd.opened(path / "3-vm") as at:
            assert os.fstat(at).st_ino == domain.stat().st_ino


def test_no_link_is_followed_below_a_directory_of_others(outside: Path, domain: Path) -> None:
    (domain / "link").symlink_to(outside)
    assert not is_opened(domain / "link")
    assert not is_opened(domain / "link" / "deeper")
    assert is_opened(domain)


@pytest.mark.parametrize(("mode", "follows"), [(0o755, True), (0o775, False), (0o777, False), (0o1777, False)])
def test_links_in_a_directory_of_roots_that_others_may_write_to_are_not_followed(
    top: Path, outside: Path, mode: int, follows: bool
) -> None:
    (top / "roots").mkdir()
    os.chown(top / "roots", 0, USER)
    (top / "roots").chmod(mode)
    (top / "roots" / "link").symlink_to(outside)
    (outside / "deeper").mkdir()
    assert is_opened(top / "roots" / "link") is follows
    assert is_opened(top / "roots" / "link" / "deeper") is follows


def test_a_directory_of_roots_where_nobody_else_can_move_it_is_trusted(top: Path, outside: Path) -> None:
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "sticky" / "roots").mkdir()
    (top / "sticky" / "roots" / "link").symlink_to(outside)
    assert is_opened(top / "sticky" / "roots" / "link", roots=True)
    (top / "sticky").chmod(0o777)
    assert not is_opened(top / "sticky" / "roots" / "link")
    assert not is_opened(top / "sticky" / "roots", roots=True)


def test_directories_of_a_third_user_are_refused_where_it_matters_whose_they_are(backing: Path) -> None:
    made(backing / "4-vm", OTHER_USER)
    assert is_opened(backing, users=())
    assert is_opened(backing / "4-vm")
    assert not is_opened(backing / "4-vm", users=())
    assert is_opened(backing / "4-vm", users=(OTHER_USER,))


def test_a_loop_of_links_a_file_and_names_that_can_be_none_are_errors_of_the_kernel(top: Path) -> None:
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    (top / "file").touch()
    for name in ("a", "file", "x" * 300, "a\0b", "missing"):
        assert not is_opened(top / name)
    assert not is_opened(Path("relative"))


def test_a_group_of_roots_is_root(top: Path, outside: Path) -> None:
    (top / "link").symlink_to(outside)
    top.chmod(0o775)
    assert is_opened(top / "link", roots=True)


def test_no_pool_is_kept_where_others_may_move_it(backing: Path) -> None:
    config = Config(daemon=DaemonConfig(run_dir=str(backing / "run"), state_dir=str(backing / "state")))
    with pytest.raises(PoolError, match="cannot be kept"):
        manage.create(config, "small", sizes=1 << 20, backend="tmpfs")
    assert not [*backing.iterdir()]


def test_roots_own_place_is_told_from_one_that_others_may_change(top: Path, backing: Path) -> None:
    dirfd.require_roots(top / "not" / "yet" / "there")
    with pytest.raises(PermissionError):
        dirfd.require_roots(backing / "not" / "there")


# The race


def raced(work: Callable[[], bool], check: Callable[[], None]) -> None:
    """Do work until it has succeeded and failed often enough to say that the race was run, and check each time."""
    outcomes = {True: 0, False: 0}
    end = time.monotonic() + DEADLINE_SECONDS
    while min(outcomes.values()) < ROUNDS:
        outcomes[work()] += 1
        check()
        assert time.monotonic() < end, f"no race: {outcomes}"


def test_a_link_is_made_in_the_domains_directory_or_nowhere(outside: Path, domain: Path, extent: Path) -> None:
    evil = domain.with_name("evil")
    evil.symlink_to(outside)

    def make() -> bool:
        try:
            extent_files.link(extent, domain / "pc.ram")
        except ExtentError:
            return False
        return True

    def check() -> None:
        assert not [*outside.iterdir()]

    with a_swapper(domain, evil):
        raced(make, check)


def test_removing_a_link_removes_nothing_elsewhere(outside: Path, domain: Path, extent: Path) -> None:
    evil = domain.with_name("evil")
    evil.symlink_to(outside)
    victim = outside / "pc.ram"
    victim.symlink_to(extent)  # even one that looks like a link of virt-dmem
    there = os.open(domain, os.O_RDONLY)

    def remove() -> bool:
        if not os.path.lexists(f"/proc/self/fd/{there}/pc.ram"):
            os.symlink(extent, "pc.ram", dir_fd=there)
        extent_files.unlink(domain / "pc.ram", extent)
        return not os.path.lexists(f"/proc/self/fd/{there}/pc.ram")

    def check() -> None:
        assert victim.is_symlink()

    with a_swapper(domain, evil):
        raced(remove, check)
    os.close(there)


def test_the_sweep_of_dangling_links_removes_nothing_elsewhere(
    top: Path, outside: Path, domain: Path, config: LibvirtConfig
) -> None:
    evil = domain.with_name("4-evil")
    evil.symlink_to(outside)
    victim, nothing = outside / "pc.ram", top / "pools" / "p" / "libvirt-gone" / "pc.ram"
    victim.symlink_to(nothing)
    there = os.open(domain, os.O_RDONLY)

    def sweep() -> bool:
        if not os.path.lexists(f"/proc/self/fd/{there}/pc.ram"):
            os.symlink(nothing, "pc.ram", dir_fd=there)
        links = paths.dangling_links(config, top / "pools")
        return domain / "pc.ram" in paths.remove_dangling({*links, domain / "pc.ram"}, top / "pools")

    def check() -> None:
        assert victim.is_symlink()

    with a_swapper(domain, evil):
        raced(sweep, check)
    os.close(there)


def test_the_socket_of_another_user_stays_that_users(outside: Path, domain: Path) -> None:
    evil = domain.with_name("evil")
    evil.symlink_to(outside)
    name = f"libvirt-{UUID}.qmp"
    for directory, owner in ((domain, USER), (outside, OTHER_USER)):
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(directory / name))
            os.chown(directory / name, owner, owner)
    there = os.open(domain, os.O_RDONLY)

    def close() -> bool:
        extent_files.close_socket(domain / name)
        closed = os.stat(name, dir_fd=there).st_uid == 0
        os.chown(name, USER, USER, dir_fd=there)
        return closed

    def check() -> None:
        assert (outside / name).stat().st_uid == OTHER_USER

    with a_swapper(domain, evil):
        raced(close, check)
    os.close(there)


def test_the_owner_of_a_directory_is_never_that_of_another_one(outside: Path, domain: Path) -> None:
    evil = domain.with_name("evil")
    evil.symlink_to(outside)

    def ask() -> bool:
        try:
            assert paths.owner_of(domain) == (USER, USER)
        except ExtentError:
            return False
        return True

    with a_swapper(domain, evil):
        raced(ask, lambda: None)


# Files that replaced a link of virt-dmem


def test_a_socket_under_another_name_or_a_third_users_is_left_alone(domain: Path, outside: Path) -> None:
    name = f"libvirt-{UUID}.qmp"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(outside / "victim"))
    os.chown(outside / "victim", USER, USER)
    os.link(outside / "victim", domain / name)
    extent_files.close_socket(domain / name)
    assert (outside / "victim").stat().st_uid == USER, "it has two names"
    (outside / "victim").unlink()
    os.chown(domain / name, OTHER_USER, OTHER_USER)
    extent_files.close_socket(domain / name)
    assert (domain / name).stat().st_uid == OTHER_USER
    os.chown(domain / name, USER, USER)
    extent_files.close_socket(domain / name)
    assert (domain / name).stat().st_uid == 0


def test_whatever_stands_in_a_domains_directory_only_links_to_nothing_of_ours_go(
    top: Path, backing: Path, domain: Path, config: LibvirtConfig
) -> None:
    pools = top / "pools"
    pools.mkdir()
    hostile_names(domain)
    hostile_names(backing)
    (backing / "5-link").symlink_to(domain)
    os.mkfifo(backing / "6-fifo")
    (domain / "out").symlink_to(f"{pools}/../../etc/nothing")
    (domain / "name").symlink_to(f"{pools}/{'x' * 300}")
    (domain / "bytes").symlink_to(pools / os.fsdecode(b"p/\xff\n"))
    (domain / "through-a-file").symlink_to(f"{top}/qemu.conf/x")
    before = {*domain.iterdir()}
    links = paths.dangling_links(config, pools)
    assert links == [domain / "bytes", domain / "name"]
    assert paths.remove_dangling(links, pools) == links
    assert {*domain.iterdir()} == before - {*links}
    assert paths.remove_dangling([*before, domain / ("x" * 300), Path("/"), Path("a\0b")], pools) == []


def test_a_link_is_not_removed_for_what_stands_in_its_place(
    domain: Path, extent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hostile_names(domain)
    before = {*domain.iterdir()}
    for name in before:
        extent_files.unlink(name, extent)
    assert {*domain.iterdir()} == before
    assert len(caplog.messages) == len(before)
    assert all(message.isprintable() for message in caplog.messages)
    caplog.clear()
    extent_files.unlink(domain / ("x" * 300), extent)
    extent_files.unlink(domain / "missing", extent)
    extent_files.unlink(domain / "missing" / "missing", extent)
    (domain / "loop").unlink()
    extent_files.unlink(domain / "self" / "x", extent)
    assert len(caplog.messages) == 1, "of an entry that could not be inspected"


def test_a_link_is_not_made_where_something_else_stands(domain: Path, extent: Path) -> None:
    hostile_names(domain)
    for name in ("a-directory", "fifo", "file", "x" * 300, "loop/x", "missing/x"):
        with pytest.raises(ExtentError):
            extent_files.link(extent, domain / name)
    for name in ("loop", "new\nline\x1b[31m\u202e", "n" * 255, "self"):
        extent_files.link(extent, domain / name)
        assert (domain / name).resolve() == extent


def test_more_names_than_libvirt_makes_are_not_all_looked_at_and_that_is_logged_once(
    top: Path, domain: Path, config: LibvirtConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5000):
        (domain / str(number)).symlink_to(top / "pools/p/gone")
    with caplog.at_level(logging.WARNING):
        found = [paths.dangling_links(config, top / "pools") for _ in range(3)]
    assert {len(links) for links in found} == {4096}
    assert len(caplog.messages) == 1
    assert "not all are scanned" in caplog.text
    while links := paths.dangling_links(config, top / "pools"):  # they are removed all the same, in several batches
        assert paths.remove_dangling(links, top / "pools") == links
    assert not [*domain.iterdir()]


# The exporter's directory


def test_the_textfile_is_written_to_no_file_that_its_directorys_owner_chooses(top: Path, outside: Path) -> None:
    exporter = made(top / "exporter", USER)
    victim = outside / "victim"
    victim.write_text("precious")
    (exporter / ".virt_dmem.prom.new").symlink_to(victim)
    write_textfile(exporter / "virt_dmem.prom", b"one 1\n")
    (exporter / ".virt_dmem.prom.new").hardlink_to(victim)
    write_textfile(exporter / "virt_dmem.prom", b"two 2\n")
    assert (exporter / "virt_dmem.prom").read_bytes() == b"two 2\n"
    assert victim.read_text() == "precious"
    assert [path.name for path in exporter.iterdir()] == ["virt_dmem.prom"]


def test_the_textfile_is_written_to_no_directory_that_its_owner_chooses(top: Path, outside: Path) -> None:
    exporter = made(top / "exporter" / "textfiles", USER)
    evil = exporter.with_name("evil")
    evil.symlink_to(outside)

    def write() -> bool:
        try:
            write_textfile(exporter / "x.prom", b"one 1\n")
        except OSError:
            return False
        return True

    def check() -> None:
        assert not [*outside.iterdir()]

    with a_swapper(exporter, evil):
        raced(write, check)
