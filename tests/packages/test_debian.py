# SPDX-License-Identifier: GPL-2.0-or-later
"""Install the packages as the README says, upgrade, remove and purge them; one story per release, in this order."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.overlay_root import OverlayRoot
from tests.packages.host_root import PACKAGES, host_root
from tests.rig.documents import lines
from tests.rig.repository import REPOSITORY
from virt_dmem import __version__
from virt_dmem.allocation.ledger_schema import SCHEMA_VERSION

pytestmark = pytest.mark.needs_lab

RELEASES = os.environ.get("RELEASE", "bookworm trixie").split()
REPOSITORY_OF_APT = REPOSITORY / "build/repository"
HOOK = "etc/libvirt/hooks/qemu.d/50-virt-dmem"
REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/>"
KEPT_BY_TOOLS = re.compile(
    r"/(var/lib/(dpkg|apt|systemd|dkms|python|ucf)|var/cache|var/log|run|tmp|root)(/|$)"
    r"|/etc/(\.pwd\.lock|group-?|gshadow-?|ld\.so\.cache|apt/sources\.list\.d/.*)$|/__pycache__|/lib/modules/[^/]+/modules\."
)
"""What dpkg, apt and the like keep for themselves."""
SNAPSHOT = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -print"


class Host:
    """A root of a release, and what was there before."""

    def __init__(self, release: str, root: OverlayRoot) -> None:
        self.release = release
        self.root = root
        self.directory = root.directory
        self.before: set[str] = set()

    def run(self, script: str) -> str:
        return self.root.run(f"cd {REPOSITORY}; {script}")

    def refuses(self, script: str) -> str:
        """Return what a command that fails said."""
        return self.run(f"if {script}; then echo it was done; exit 1; fi")

    def files(self) -> set[str]:
        return {path for path in self.run(SNAPSHOT).splitlines() if not KEPT_BY_TOOLS.search(path)}

    def status(self, package: str) -> str:
        return self.run(f"dpkg-query -W -f '${{db:Status-Status}}' {package} 2>/dev/null || echo none").strip()

    def deb(self, package: str) -> Path:
        (found,) = (PACKAGES / self.release).glob(f"{package}_*.deb")
        return found


@pytest.fixture(scope="module", params=RELEASES)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with OverlayRoot(host_root(request.param)) as root:
        there = root.directory / str(REPOSITORY_OF_APT)[1:]
        shutil.copytree(REPOSITORY_OF_APT, there)
        host = Host(request.param, root)
        host.before = host.files()
        yield host


def repacked(host: Host, package: str, version: str, tmp_path: Path) -> str:
    """Return the path, in the root, of a package with another version."""
    tree, deb = tmp_path / "tree", f"{package}_{version}.deb"
    subprocess.run(["dpkg-deb", "-R", host.deb(package), tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, host.directory / deb], check=True, stdout=subprocess.DEVNULL
    )
    return f"/{deb}"


def test_the_readmes_installation_is_all_that_is_needed(host: Host) -> None:
    commands = [line for line in lines(REPOSITORY / "README.md") if line.split()[0] in ("cp", "apt")]
    assert len(commands) == 3
    for command in commands:
        host.run(command.replace("trixie", host.release))
    assert host.status("virt-dmem") == "installed"
    assert "origin=virt-dmem" in host.run("apt-cache policy").replace("o=virt-dmem", "origin=virt-dmem")
    for program in ("virt-dmem", "virt-dmemd"):
        assert re.fullmatch(rf"{program} {__version__} \([0-9a-f]+(-dirty)?\)\n", host.run(f"{program} --version"))


def test_hook_group_and_directories_are_there(host: Host) -> None:
    hook = host.directory / HOOK
    assert hook.read_text() == (REPOSITORY / "hooks/qemu.d/50-virt-dmem").read_text().replace("@PREFIX@", "/usr")
    assert hook.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in hook.parent.iterdir()] == ["50-virt-dmem"]
    host.run("getent group virt-dmem")
    paths = "/run/virt-dmem /run/virt-dmem/pools /var/lib/virt-dmem"
    assert host.run(f"stat -c %a {paths}").split() == ["755", "711", "700"]
    enabled = host.run("systemctl --root=/ is-enabled virt-dmemd.service virt-dmemd.socket").split()
    assert enabled == ["enabled", "enabled"]


def test_check_finds_no_fault_with_the_installation(host: Host) -> None:
    checked = host.run("virt-dmem check || true")
    for name in ("hook", "hook-client", "other-hooks", "host-unchanged", "helper", "apparmor"):
        assert f"PASS  {name}: " in checked, checked


def test_apparmor_lets_qemu_in_with_the_rules_of_this_libvirt(host: Host) -> None:
    local = host.directory / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    said = local.read_text() if local.is_file() else ""
    assert ("libvirt-qemu.d/virt-dmem" in said) == (host.release == "bookworm")
    profile = "#include <tunables/global>\nprofile libvirt-test { #include <abstractions/libvirt-qemu>\n }\n"
    (host.directory / "tmp/profile").write_text(profile)
    assert "/run/virt-dmem/pools" in host.run("apparmor_parser --preprocess --skip-kernel-load /tmp/profile")


def test_the_daemon_and_its_command_work_with_the_libraries_of_the_release(host: Host) -> None:
    host.run(
        "virt-dmemd >/tmp/daemon.log 2>&1 & daemon=$!; trap 'kill $daemon' EXIT;"
        "for i in $(seq 600); do [ ! -S /run/virt-dmem/sock ] || break; sleep 0.1; done;"
        "virt-dmem pool create small --backend tmpfs --size 64M && virt-dmem pool list --json"
        " && virt-dmem list --json && virt-dmem metrics >/dev/null && virt-dmem completion zsh >/dev/null"
        " && virt-dmem savings && virt-dmem pool destroy small --yes || { cat /tmp/daemon.log; exit 1; }"
    )
    domain = "<domain type='qemu'><name>a</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    (host.directory / "tmp/domain.xml").write_text(domain)
    assert "https://virt-dmem.dev/xmlns" in host.run("virt-dmem rewrite --pool small </tmp/domain.xml")


def test_dkms_builds_the_module_and_check_sees_a_build_that_failed(host: Host) -> None:
    host.run("apt-get install -y -q virt-dmem-dkms")
    (kernel,) = (path.parent.name for path in host.directory.glob("lib/modules/*/build"))
    assert "dmemfs" in host.run(f"modinfo -k {kernel} dmemfs")
    assert "PASS  dmemfs-module: " in host.run("virt-dmem check || true")
    # another kernel comes, for which it cannot be built
    modules = host.directory / "lib/modules"
    (modules / "9.9-new").mkdir()
    (modules / "9.9-new/modules.dep").write_text("")
    (modules / "9.9-new/build").mkdir()
    (modules / "9.9-new/build/Makefile").write_text("all modules:\n\tfalse\n")
    assert "building the module for 9.9-new failed" in host.run("/usr/lib/virt-dmem/module build 9.9-new")
    checked = host.run("virt-dmem check || true")
    assert "WARN  dmemfs-module: There is no module dmemfs for kernel 9.9-new" in checked
    assert "dmemfs" in host.run(f"modinfo -k {kernel} dmemfs")
    shutil.rmtree(modules / "9.9-new")


def test_a_pool_on_dmemfs_keeps_its_module(host: Host) -> None:
    record = host.directory / "var/lib/virt-dmem/pools/large.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text('{"backend": "dmemfs"}')
    said = host.refuses("apt-get remove -y -q virt-dmem-dkms")
    assert "virt-dmem-dkms is not removed, because these pools are on dmemfs" in said
    assert "    large\n" in said
    record.unlink()
    record.parent.rmdir()


def test_removing_is_refused_while_a_domain_uses_a_pool(host: Host) -> None:
    domain = host.directory / "etc/libvirt/qemu/alpha.xml"
    domain.write_text(f"<domain><name>alpha</name><metadata>{REQUEST}</metadata></domain>")
    said = host.refuses("apt-get remove -y -q virt-dmem")
    assert "virt-dmem is not removed, because these domains use memory from its pools:\n    alpha\n" in said
    assert "virt-dmem unapply" in said
    assert host.status("virt-dmem") == "installed"
    assert (host.directory / HOOK).exists()
    assert "PASS  hook: " in host.run("virt-dmem check || true")
    domain.unlink()


def test_an_upgrade_keeps_the_configuration_and_brings_the_hook_again(host: Host, tmp_path: Path) -> None:
    config = host.directory / "etc/virt-dmem/virt-dmem.toml"
    config.write_text('default_pool = "mine"\n')
    (host.directory / HOOK).write_text("#!/bin/sh\n")
    host.run(f"dpkg -i {repacked(host, 'virt-dmem', '99.0', tmp_path)}")
    assert config.read_text() == 'default_pool = "mine"\n'
    assert "virt-dmem-hook" in (host.directory / HOOK).read_text()
    assert [path.name for path in (host.directory / HOOK).parent.iterdir()] == ["50-virt-dmem"]


def test_a_downgrade_is_refused_only_where_the_ledger_cannot_be_read(host: Host) -> None:
    path = host.directory / "var/lib/virt-dmem/ledger.sqlite"
    shutil.copy(host.deb("virt-dmem"), host.directory / "older.deb")
    kept = path.read_bytes()
    with sqlite3.connect(path) as ledger:
        ledger.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    ledger.close()
    said = host.refuses("dpkg -i /older.deb")
    assert f"has version {SCHEMA_VERSION + 1}, and it supports version {SCHEMA_VERSION}" in said
    assert "99.0" in host.run("dpkg-query -W virt-dmem")
    assert (host.directory / HOOK).exists()
    path.write_bytes(kept)
    host.run("dpkg -i /older.deb")
    assert host.status("virt-dmem") == "installed"
    assert "PASS  hook: " in host.run("virt-dmem check || true")


def test_removing_takes_all_but_configuration_and_state(host: Host) -> None:
    host.run("apt-get remove -y -q virt-dmem-dkms virt-dmem")
    assert host.status("virt-dmem") == "config-files"
    assert not (host.directory / HOOK).exists()
    assert (host.directory / "etc/virt-dmem/virt-dmem.toml").exists()
    local = host.directory / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    assert not local.is_file() or "virt-dmem" not in local.read_text()
    assert host.run("find / -xdev -name 'dmemfs.ko*'") == ""


def test_purging_leaves_only_what_the_administrator_made(host: Host) -> None:
    mine = host.directory / "etc/virt-dmem/conf.d/mine.toml"
    mine.write_text("")
    host.run("apt-get purge -y -q virt-dmem-dkms virt-dmem")
    for deb in host.directory.glob("*.deb"):
        deb.unlink()
    new = host.files() - host.before
    assert new == {"/etc/virt-dmem", "/etc/virt-dmem/conf.d", "/etc/virt-dmem/conf.d/mine.toml"}
    assert host.before - host.files() == set()
    assert host.run("getent group virt-dmem || echo none") == "none\n"
    assert host.run("find /run/virt-dmem || true").count("\n") <= 1
