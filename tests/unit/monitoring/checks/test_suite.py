# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``virt-dmem check`` sees: each fault in a fake tree, and this machine as it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.rig.fake_tree import fake_process, fake_tree, put
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import main
from virt_dmem.config.schema import Config, PrefaultConfig
from virt_dmem.monitoring.checks import suite
from virt_dmem.monitoring.checks.suite import CHECKS, Host, Status
from virt_dmem.native.programs import HOOK_CLIENT
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.units import MIB

HOOK = REPOSITORY / "hooks/qemu.d/50-virt-dmem"
HOOKS = "etc/libvirt/hooks"
BOOTED = 1_700_000_000


@pytest.fixture
def machine(tmp_path: Path) -> Host:
    """A machine on which nothing of ours is installed."""
    fake_tree(tmp_path)
    put(tmp_path / "etc/passwd", "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:107:,,,:/:/bin/false\n")
    put(tmp_path / "etc/group", "root:x:0:\n")
    put(tmp_path / "proc/stat", f"cpu 0\nbtime {BOOTED}\n")
    return Host(Config(), "test:///default", tmp_path)


def install_hook(machine: Host, name: str = "qemu.d/50-virt-dmem", text: bytes | None = None) -> Path:
    path = machine.root / HOOKS / name
    put(path, "")
    path.write_bytes(HOOK.read_bytes().replace(b"@PREFIX@", b"/usr") if text is None else text)
    path.chmod(0o755)
    return path


def install_client(machine: Host, program: Path | None = None) -> Path:
    """Put a copy of what the hook runs, or of something else, where it looks for it."""
    path = machine.root / "usr/bin/virt-dmem-hook"
    put(path, "")
    return Path(shutil.copy(program or HOOK_CLIENT, path))


def libvirtd(machine: Host, started: float, pid: int = 4711) -> None:
    fake_process(machine.root, pid, comm="libvirtd")
    ticks = int((started - BOOTED) * suite.CLOCK_TICKS)
    put(machine.root / f"proc/{pid}/stat", f"{pid} (lib virt)d) S {' '.join('0' * 18)} {ticks} 0 0\n")


def pool(machine: Host, name: str = "p", **changes: Any) -> PoolRecord:
    """Record a tmpfs pool, and what the tree calls mounted."""
    mount = machine.root / "mnt" / name
    mount.mkdir(parents=True)
    share = {-1: NodeShare(MIB, MIB)}
    record = PoolRecord(name, "tmpfs", 4096, str(mount), share, state="ready")
    record = msgspec.structs.replace(record, **changes)
    put(machine.root / f"var/lib/virt-dmem/pools/{name}.json", msgspec.json.encode(record).decode())
    return record


def mounted(machine: Host, *mounts: tuple[str, str, str]) -> None:
    lines = [
        f"{21 + at} 1 0:{30 + at} / {path} rw - {kind} none {options}"
        for at, (path, kind, options) in enumerate(mounts)
    ]
    put(machine.root / "proc/self/mountinfo", "\n".join(lines) + "\n")


def test_huge_pages_are_looked_for(machine: Host) -> None:
    assert suite.huge_pages(machine).message == "The kernel has huge pages of 2 MiB, 1 GiB."


def test_a_kernel_without_huge_pages_is_a_fault_only_where_a_pool_needs_them(tmp_path: Path) -> None:
    machine = Host(Config(), "", fake_tree(tmp_path, page_sizes=()))
    assert suite.huge_pages(machine).status is Status.WARN
    pool(machine, backend="hugetlbfs")
    assert suite.huge_pages(machine).status is Status.FAIL


@pytest.mark.parametrize(("hvo", "status"), [("0", Status.PASS), ("1", Status.PASS), (None, Status.WARN)])
def test_a_kernel_without_hvo_saves_nothing(tmp_path: Path, hvo: str | None, status: Status) -> None:
    assert suite.hvo(Host(Config(), "", fake_tree(tmp_path, hvo=hvo))).status is status


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.12.117+deb13-amd64", Status.WARN),
        ("6.12.117", Status.WARN),
        ("6.12.1170", Status.PASS),
        ("6.12.11", Status.PASS),
        ("5.6.12.117", Status.PASS),
    ],
)
def test_a_kernel_that_loses_optimized_pages_is_named(machine: Host, release: str, status: Status) -> None:
    put(machine.root / "proc/sys/kernel/osrelease", f"{release}\n")
    result = suite.hvo(machine)
    assert result.status is status
    assert (release in result.message) is (status is Status.WARN)


@pytest.mark.parametrize(("taint", "status"), [(32, Status.WARN), (12320, Status.WARN), (4096 + 64, Status.PASS)])
def test_a_kernel_that_has_lost_pages_says_so_by_its_taint(machine: Host, taint: int, status: Status) -> None:
    put(machine.root / "proc/sys/kernel/tainted", f"{taint}\n")
    assert suite.hvo(machine).status is status


def test_a_pool_whose_pages_were_taken_without_hvo_is_named(machine: Host) -> None:
    pool(machine, "late", backend="hugetlbfs", optimized=False)
    assert "late" in suite.hvo(machine).message
    assert suite.hvo(machine).status is Status.WARN


def test_no_pool_is_worth_a_word(machine: Host) -> None:
    assert "virt-dmem pool create" in suite.pools_mounted(machine).hint


def test_a_pool_that_is_not_mounted_or_not_ready_is_a_fault(machine: Host) -> None:
    record = pool(machine)
    assert suite.pools_mounted(machine).status is Status.FAIL
    assert "p is ready and has 0 B of 1 MiB" in suite.pools_mounted(machine).message
    mounted(machine, (record.mount, "tmpfs", "rw"))
    assert suite.pools_mounted(machine).status is Status.PASS
    pool(machine, "q", state="creating")
    assert "q is creating" in suite.pools_mounted(machine).message
    assert "'virt-dmem pool mount q'" in suite.pools_mounted(machine).hint


def test_a_pool_that_was_not_given_back_whole_is_to_be_destroyed_again(machine: Host) -> None:
    pool(machine, "half", state="destroying")
    assert "'virt-dmem pool destroy half'" in suite.pools_mounted(machine).hint


def test_a_pool_must_not_be_the_first_hugetlbfs_mount_of_its_page_size(machine: Host) -> None:
    ours = ("/run/virt-dmem/pools/p", "hugetlbfs", "rw,pagesize=2M")
    mounted(machine, ("/dev/hugepages1G", "hugetlbfs", "rw,pagesize=1024M"), ours)
    assert suite.first_hugetlbfs_mount(machine).status is Status.FAIL
    mounted(machine, ("/dev/hugepages", "hugetlbfs", "rw,pagesize=2M"), ours)
    assert suite.first_hugetlbfs_mount(machine).status is Status.PASS


def test_it_may_be_the_first_where_libvirt_is_told_which_to_use(machine: Host) -> None:
    mounted(machine, ("/run/virt-dmem/pools/p", "hugetlbfs", "rw,pagesize=2M"))
    put(machine.root / "etc/libvirt/qemu.conf", '#hugetlbfs_mount = "/x"\n')
    assert suite.first_hugetlbfs_mount(machine).status is Status.FAIL
    put(machine.root / "etc/libvirt/qemu.conf", 'hugetlbfs_mount = ["/dev/hugepages2M"]\n')
    assert suite.first_hugetlbfs_mount(machine).status is Status.PASS


def test_a_directory_that_qemus_user_cannot_pass_is_named(machine: Host) -> None:
    pool(machine, mount="/run/virt-dmem/pools/p")
    (machine.root / "run/virt-dmem/pools/p").mkdir(parents=True)
    for directory in ("run", "run/virt-dmem", "run/virt-dmem/pools", "run/virt-dmem/pools/p"):
        (machine.root / directory).chmod(0o711)
    machine.root.chmod(0o755)
    assert suite.pool_roots(machine).status is Status.PASS
    (machine.root / "run/virt-dmem").chmod(0o750)
    assert suite.pool_roots(machine).status is Status.FAIL
    assert suite.pool_roots(machine).hint == "chmod o+x /run/virt-dmem"


def test_a_directory_of_the_group_of_qemus_user_is_passed(machine: Host) -> None:
    status = os.stat_result((0o40710, 1, 1, 1, 0, 107, 0, 0, 0, 0))
    assert suite._may_search(status, suite._qemu_user(machine))
    put(machine.root / "etc/libvirt/qemu.conf", 'user = "root"\n')
    assert suite._qemu_user(machine) == (0, 0)
    assert not suite._may_search(status, None)


def test_the_group_is_looked_for(machine: Host) -> None:
    assert suite.group(machine).hint == "groupadd --system virt-dmem"
    put(machine.root / "etc/group", "virt-dmem:x:998:\n")
    assert suite.group(machine).status is Status.PASS


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
def test_a_helper_that_does_not_run_is_a_fault(program: str) -> None:
    assert suite.helper(Host(Config(prefault=PrefaultConfig(helper=program)), "")).status is Status.FAIL


def test_the_installed_hook_is_compared_with_ours(machine: Host) -> None:
    assert suite.hook(machine).status is Status.FAIL
    installed = install_hook(machine)
    assert suite.hook(machine).status is Status.PASS
    installed.chmod(0o644)
    assert "not executable" in suite.hook(machine).message
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert "differs" in suite.hook(machine).message
    installed.unlink()
    installed.symlink_to(HOOK)
    assert "no regular file" in suite.hook(machine).message


def test_a_hook_that_was_copied_and_not_installed_is_a_fault(machine: Host) -> None:
    install_hook(machine, text=HOOK.read_bytes())
    assert "differs" in suite.hook(machine).message
    assert suite.hook_client(machine).status is Status.FAIL


def test_what_the_hook_runs_is_compared_with_ours_and_run(
    machine: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_hook(machine)
    assert "/usr/bin/virt-dmem-hook is missing" in suite.hook_client(machine).message
    program = install_client(machine)
    assert suite.hook_client(machine).status is Status.PASS
    program.chmod(0o644)
    result = suite.hook_client(machine)
    assert "cannot be run" in result.message
    assert "libjson-c5" in result.hint
    install_client(machine, Path("/bin/false"))
    assert "differs" in suite.hook_client(machine).message
    monkeypatch.setattr(suite, "HOOK_CLIENT", tmp_path / "not built")
    assert "cannot be run" in suite.hook_client(machine).message


def test_what_the_hook_runs_must_lie_where_apparmor_lets_libvirtd_run_it(machine: Host) -> None:
    install_hook(machine, text=HOOK.read_bytes().replace(b"@PREFIX@", b"/opt/x"))
    assert suite.hook(machine).status is Status.PASS
    (machine.root / "opt/x/bin").mkdir(parents=True)
    install_client(machine).rename(machine.root / "opt/x/bin/virt-dmem-hook")
    rules = machine.root / "etc/apparmor.d"
    put(rules / "usr.sbin.libvirtd", "  /usr/bin/* PUx,\n  /** rwmkl,\n  #include <local/usr.sbin.libvirtd>\n")
    assert suite.hook_client(machine).status is Status.PASS, "AppArmor is not enabled"
    put(machine.root / "sys/module/apparmor/parameters/enabled", "Y\n")
    result = suite.hook_client(machine)
    assert result.status is Status.FAIL
    rule = result.hint.split("'")[1]
    assert rule == "/opt/x/bin/virt-dmem-hook PUx,"
    put(rules / "local/usr.sbin.libvirtd", f"{rule}\n")
    assert suite.hook_client(machine).status is Status.PASS


def test_a_libvirtd_older_than_its_first_hook_is_to_be_reloaded(machine: Host) -> None:
    assert suite.hook_in_force(machine).status is Status.WARN
    install_hook(machine)
    assert suite.hook_in_force(machine).status is Status.PASS
    libvirtd(machine, time.time() - 3600)
    result = suite.hook_in_force(machine)
    assert result.status is Status.WARN
    assert result.hint.startswith("systemctl reload libvirtd")
    libvirtd_again = time.time() + 10
    put(machine.root / "proc/stat", f"btime {int(libvirtd_again)}\n")
    assert suite.hook_in_force(machine).status is Status.PASS


@contextmanager
def daemon_that_served_at(at: float, path: Path) -> Iterator[None]:
    """A fake: something that answers ListDomains, then ShowDomain, as virt-dmemd would after a start."""
    domain = {"uuid": "guest", "since": at, "steps": [{"step": "prepare", "at": at, "seconds": 0.1}]}
    answers = {"domains": [domain | {"steps": []}]}, {"domain": domain}
    with socket.socket(socket.AF_UNIX) as listener:
        path.parent.mkdir(parents=True)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            caller, _ = listener.accept()
            with caller:
                for answer in answers:
                    if caller.recv(65536):
                        caller.sendall(json.dumps({"parameters": answer}).encode() + b"\0")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(("ago", "status"), [(10, Status.PASS), (7200, Status.WARN)])
def test_a_hook_that_was_called_since_libvirtd_started_is_in_force(machine: Host, ago: int, status: Status) -> None:
    install_hook(machine)
    libvirtd(machine, time.time() - 3600)
    with daemon_that_served_at(time.time() - ago, machine.root / "run/virt-dmem/sock"):
        assert suite.hook_in_force(machine).status is status


def test_a_copy_of_our_hook_is_a_fault_and_a_stranger_worth_a_word(machine: Host) -> None:
    install_hook(machine)
    install_hook(machine, "qemu", b"#!/bin/sh\n")
    put(machine.root / HOOKS / "qemu.d/README", "not executable\n")
    assert suite.other_hooks(machine).status is Status.PASS
    install_hook(machine, "qemu.d/10-network", b"#!/bin/sh\n")
    assert suite.other_hooks(machine).status is Status.WARN
    assert "10-network" in suite.other_hooks(machine).message
    install_hook(machine, "qemu.d/50-virt-dmem.dpkg-old")
    assert suite.other_hooks(machine).status is Status.FAIL
    assert "50-virt-dmem.dpkg-old" in suite.other_hooks(machine).message


def test_a_memory_backing_dir_on_a_disk_matters_while_the_hook_does_not_run(machine: Host) -> None:
    assert suite.backing_dir(machine).status is Status.WARN
    assert "/var/lib/libvirt/qemu/ram is on ext4" in suite.backing_dir(machine).message
    mounted(machine, ("/", "ext4", "rw"), ("/mem", "tmpfs", "rw"), ("/var", "xfs", "rw"))
    assert "is on xfs" in suite.backing_dir(machine).message
    put(machine.root / "etc/libvirt/qemu.conf", 'memory_backing_dir = "/mem/x"\n')
    assert suite.backing_dir(machine).status is Status.PASS
    put(machine.root / "etc/libvirt/qemu.conf", "")
    install_hook(machine)
    assert suite.backing_dir(machine).status is Status.PASS


def test_apparmor_needs_our_rule_where_it_is_enabled(machine: Host) -> None:
    assert suite.apparmor(machine).status is Status.PASS
    put(machine.root / "sys/module/apparmor/parameters/enabled", "Y\n")
    assert suite.apparmor(machine).status is Status.FAIL
    abstractions = machine.root / "etc/apparmor.d/abstractions"
    rules = (REPOSITORY / "systemd/apparmor.conf").read_text()
    put(abstractions / "libvirt-qemu.d/virt-dmem", rules)
    put(abstractions / "libvirt-qemu", "  include if exists <local/abstractions/libvirt-qemu>\n")
    assert suite.apparmor(machine).status is Status.FAIL, "Debian 12 does not read libvirt-qemu.d"
    local = machine.root / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    put(local, "include if exists <abstractions/libvirt-qemu.d/virt-dmem>\n")
    assert suite.apparmor(machine).status is Status.PASS
    local.unlink()
    put(abstractions / "libvirt-qemu", "  include if exists <abstractions/libvirt-qemu.d>\n")
    assert suite.apparmor(machine).status is Status.PASS
    put(abstractions / "libvirt-qemu.d/virt-dmem", "/run/virt-dmem/pools/*/@{profile_name}/** rwk,\n")
    result = suite.apparmor(machine)
    assert (result.status, "make the monitor" in result.message) == (Status.FAIL, True)
    assert "'/var/lib/libvirt/qemu/@{profile_name}.qmp rwk,'" in result.hint
    (abstractions / "libvirt-qemu.d/virt-dmem").unlink()
    assert suite.apparmor(machine).status is Status.FAIL
    put(machine.root / "etc/libvirt/qemu.conf", 'security_driver = "none"\n')
    assert suite.apparmor(machine).status is Status.PASS


def test_an_enforcing_selinux_is_a_fault_until_extents_are_labelled(machine: Host) -> None:
    assert suite.selinux(machine).status is Status.PASS
    put(machine.root / "sys/fs/selinux/enforce", "1")
    assert suite.selinux(machine).status is Status.FAIL
    put(machine.root / "etc/libvirt/qemu.conf", 'security_driver = "none"\n')
    assert suite.selinux(machine).status is Status.PASS


def test_a_check_that_cannot_look_does_not_stop_the_others(machine: Host) -> None:
    (machine.root / "etc/group").unlink()
    found = {check.name: result for check, result in suite.run(machine)}
    assert list(found) == [check.name for check in CHECKS]
    assert found["group"].status is Status.WARN
    assert "etc/group" in found["group"].message
    assert found["daemon"].status is Status.FAIL
    assert found["libvirt"].status is Status.PASS
    assert all(result.hint for result in found.values() if result.status is not Status.PASS)


def test_this_machine_is_checked_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "virt-dmem.toml"
    config.write_text(f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n')
    arguments = ["check", "--config", str(config), "--connect", "test:///default"]
    assert main(arguments) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split()[1].rstrip(":") for line in lines] == [check.name for check in CHECKS]
    assert main([*arguments, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    found = {item["name"]: item["status"] for item in answer["checks"]}
    assert (found["libvirt"], found["helper"], found["daemon"]) == ("PASS", "PASS", "FAIL")
