# SPDX-License-Identifier: GPL-2.0-or-later
"""Install the packages as the README says, upgrade, remove and purge them; one story per release, in this order."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.lab.container import Container
from tests.packages.host_root import APT_REPOSITORY, OTHER_KERNEL, PACKAGES, host_root
from tests.packages.repacked import repacked
from tests.rig.documents import lines
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import CONSOLES
from tests.rig.repository import REPOSITORY
from virt_dmem import __version__
from virt_dmem.allocation.ledger_schema import _MIGRATIONS, SCHEMA_VERSION

pytestmark = pytest.mark.needs_lab

RELEASES = os.environ.get("RELEASE", "bookworm trixie").split()
HOOKS = "/etc/libvirt/hooks/qemu.d"
HOOK = f"{HOOKS}/50-virt-dmem"
CONFIG = "/etc/virt-dmem/virt-dmem.toml"
LOCAL_RULES = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
KEPT_BY_OTHERS = re.compile(
    r"/(var/lib/(dpkg|apt|systemd|dkms|libvirt|ucf)|etc/libvirt/qemu|var/cache|var/log|var/tmp|run|tmp|root)(/|$)"
    r"|/etc/(\.pwd\.lock|group-?|gshadow-?|ld\.so\.cache|apt/sources\.list\.d/.*)$|/__pycache__|/lib/modules/[^/]+/modules\."
)
"""What dpkg, apt, systemd and libvirt keep for themselves."""
SOCKETS = "/run/virt-dmem/sock /run/virt-dmem/sock-pages"
SNAPSHOT = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -print"


class Installation:
    """A booted container of a release, and what was there before."""

    def __init__(self, release: str, container: Container) -> None:
        self.release = release
        self.container = container
        self.before: set[str] = set()

    def run(self, script: str, *, check: bool = True, timeout: float = 300) -> str:
        """Run a script in the directory of the checkout, and return all that it said."""
        command = f"exec 2>&1; export DEBIAN_FRONTEND=noninteractive; cd {REPOSITORY}; {script}"
        return self.container.run(command, check=check, timeout=timeout).stdout.replace("\r", "")

    def refuses(self, script: str) -> str:
        """Return what a command that fails said."""
        return self.run(f"if {script}; then echo it was done; exit 1; fi")

    def files(self) -> set[str]:
        return {path for path in self.run(SNAPSHOT).splitlines() if not KEPT_BY_OTHERS.search(path)}

    def status(self, package: str) -> str:
        return self.run(f"dpkg-query -W -f '${{db:Status-Status}}' {package} 2>/dev/null || echo none").strip()

    def copy(self, *files: Path) -> None:
        """Copy files or directories to the same place there."""
        packed = subprocess.run(["tar", "-cP", *files], capture_output=True, check=True).stdout
        self.container.run(["/usr/bin/tar", "-xP"], stdin=packed)

    def deb(self, package: str) -> Path:
        (found,) = (PACKAGES / self.release).glob(f"{package}_*.deb")
        return found

    def qemu(self) -> str:
        return self.run("pgrep -f -- '-name guest=lives-on'")


@pytest.fixture(scope="module", params=RELEASES)
def host(request: pytest.FixtureRequest) -> Iterator[Installation]:
    with Container(host_root(request.param)) as container:
        host = Installation(request.param, container)
        host.copy(APT_REPOSITORY)
        host.run("systemctl start libvirtd.service && virsh -q list")  # it looks for hooks, and there are none yet
        host.before = host.files()
        yield host


def in_ledger(host: Installation, statements: str) -> str:
    """Run SQL statements on the ledger, and return the first column of what the last one gives."""
    program = f"""import sqlite3
ledger = sqlite3.connect("/var/lib/virt-dmem/ledger.sqlite", isolation_level=None)
for statement in {statements!r}.split(";")[:-1]:
    rows = ledger.execute(statement).fetchall()
print(*[row[0] for row in rows], sep="\\n")
"""
    return host.container.run(["/usr/bin/python3", "-c", program]).stdout.replace("\r", "")


def last_migration_undone() -> str:
    """Return the SQL that takes away what the last migration added: tables, columns, indexes and triggers."""
    with closing(sqlite3.connect(":memory:")) as ledger:
        ledger.executescript("".join(_MIGRATIONS[:-1]))
        before = schema_of(ledger)
        ledger.executescript(_MIGRATIONS[-1])
        after = schema_of(ledger)
    assert before.keys() <= after.keys(), "it took something away, which nobody can put back"
    new = [f"DROP {kind} IF EXISTS {name}" for kind, name in sorted(after.keys() - before.keys(), reverse=True)]
    for (kind, table), columns in before.items():
        if kind == "table":
            new += [f"ALTER TABLE {table} DROP COLUMN {name}" for name in after[kind, table][len(columns) :]]
    return "; ".join(new)


def schema_of(ledger: sqlite3.Connection) -> dict[tuple[str, str], list[str]]:
    """Return what a file has, by kind and name, and the columns of each table."""
    listed = ledger.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {
        (kind, name): [row[1] for row in ledger.execute(f"PRAGMA table_info({name})")] if kind == "table" else []
        for kind, name in listed
    }


def test_the_readmes_installation_is_all_that_is_needed(host: Installation) -> None:
    commands = [line for line in lines(REPOSITORY / "README.md") if line.split()[0] in ("cp", "apt")]
    assert len(commands) == 3
    for command in commands:
        host.run(command.replace("trixie", host.release))
    assert host.status("virt-dmem") == "installed"
    assert "origin=virt-dmem" in host.run("apt-cache policy").replace("o=virt-dmem", "origin=virt-dmem")
    for program in ("virt-dmem", "virt-dmemd"):
        assert re.fullmatch(rf"{program} {__version__} \([0-9a-f]+(-dirty)?\)\n", host.run(f"{program} --version"))


def test_hook_group_and_directories_are_there(host: Installation) -> None:
    hook = (REPOSITORY / "hooks/qemu.d/50-virt-dmem").read_text().replace("@PREFIX@", "/usr")
    assert host.run(f"cat {HOOK}") == hook
    assert host.run(f"stat -c %a {HOOK}").strip() == "755"
    assert host.run(f"ls -A {HOOKS}").split() == ["50-virt-dmem"]
    host.run("getent group virt-dmem")
    paths = "/run/virt-dmem /run/virt-dmem/pools /var/lib/virt-dmem"
    assert host.run(f"stat -c %a {paths}").split() == ["755", "711", "700"]
    for verb in ("is-enabled", "is-active"):
        assert "in" not in host.run(f"systemctl {verb} virt-dmemd.service virt-dmemd.socket"), verb


def test_check_finds_no_fault_with_the_installation(host: Installation) -> None:
    checked = host.run("virt-dmem check", check=False)
    for name in ("hook", "hook-client", "hook-in-force", "other-hooks", "host-unchanged", "helper", "daemon"):
        assert f"PASS  {name}: " in checked, checked


def test_apparmor_lets_qemu_in_with_the_rules_of_this_libvirt(host: Installation) -> None:
    local = host.run(f"cat {LOCAL_RULES}", check=False)
    assert ("libvirt-qemu.d/virt-dmem" in local) == (host.release == "bookworm")
    profile = "#include <tunables/global>\nprofile libvirt-test { #include <abstractions/libvirt-qemu>\n }\n"
    host.container.write("/tmp/profile", profile)
    assert "/run/virt-dmem/pools" in host.run("apparmor_parser --preprocess --skip-kernel-load /tmp/profile")


def test_a_guest_starts_from_a_pool_with_the_libraries_of_the_release(host: Installation) -> None:
    host.run("virt-dmem pool create guests --backend tmpfs --size 256M")
    host.run(f"mkdir -p {CONSOLES}")
    host.container.write("/tmp/domain.xml", domain_xml("lives-on", kind="qemu"))
    host.run("virsh -q define /tmp/domain.xml && virt-dmem apply lives-on --pool guests && virsh -q start lives-on")
    (domain,) = json.loads(host.run("virt-dmem list --json"))["domains"]
    assert domain["name"] == "lives-on"
    assert domain["reserved_bytes"] > 0
    host.run(
        "virt-dmem show lives-on --timing && virt-dmem savings && virt-dmem completion zsh && virt-dmem report -h"
    )
    metrics = host.run("virt-dmem metrics")
    assert f'virt_dmem_build_info{{version="{__version__}"}} 1' in metrics


def test_removing_is_refused_while_a_domain_uses_a_pool(host: Installation) -> None:
    said = host.refuses("apt-get remove -y -q virt-dmem")
    assert "virt-dmem is not removed, because these domains use memory from its pools:\n    lives-on\n" in said
    assert "virt-dmem unapply" in said
    assert host.status("virt-dmem") == "installed"
    assert "in" not in host.run("systemctl is-active virt-dmemd.service virt-dmemd.socket")
    assert "PASS  hook: " in host.run("virt-dmem check", check=False)


def test_guests_start_at_any_time_of_an_upgrade(host: Installation, tmp_path: Path) -> None:
    later = repacked(host.deb("virt-dmem"), "98.0", tmp_path)
    host.copy(later)
    host.container.write("/tmp/passing.xml", domain_xml("passing", kind="qemu"))
    host.run("virsh -q define /tmp/passing.xml && virt-dmem apply passing --pool guests")
    sockets = host.run(f"stat -c %i {SOCKETS}")
    started = host.run(f"""
        dpkg -i {later} >/tmp/log 2>&1 & dpkg=$!
        while kill -0 $dpkg 2>/dev/null; do
            virsh -q start --paused passing && virsh -q destroy passing && echo started || exit
        done
        wait $dpkg || {{ cat /tmp/log; exit 1; }}""")
    assert set(started.split()) == {"started"}
    print(f"{started.count('started')} starts")
    assert host.run(f"stat -c %i {SOCKETS}") == sockets
    host.run("virsh -q undefine passing")


def test_an_upgrade_leaves_the_running_guest_the_ledger_and_the_configuration(
    host: Installation, tmp_path: Path
) -> None:
    """What was there before has another version, and a ledger of an earlier schema, with the running guest."""
    before, listed = host.qemu(), json.loads(host.run("virt-dmem list --json"))["domains"]
    host.run("systemctl stop virt-dmemd.socket virt-dmemd.service")
    in_ledger(host, f"{last_migration_undone()}; PRAGMA user_version = {SCHEMA_VERSION - 1};")
    host.run("systemctl start virt-dmemd.socket")
    daemon = host.run("systemctl show -p MainPID --value virt-dmemd.service")
    host.run(f"echo '# mine' >>{CONFIG}; echo '#!/bin/sh' >{HOOK}")
    later = repacked(host.deb("virt-dmem"), "99.0", tmp_path)
    host.copy(later)
    host.run(f"dpkg -i {later}")
    assert host.qemu() == before
    assert host.run("systemctl show -p MainPID --value virt-dmemd.service") != daemon
    (after,) = json.loads(host.run("virt-dmem list --json"))["domains"]
    assert after["reserved_bytes"] == listed[0]["reserved_bytes"]
    assert in_ledger(host, "PRAGMA user_version;") == f"{SCHEMA_VERSION}\n"
    assert in_ledger(host, "SELECT sum(bytes) FROM charged;") == f"{after['reserved_bytes']}\n"
    assert f"ledger.sqlite.v{SCHEMA_VERSION - 1}-" in host.run("ls /var/lib/virt-dmem"), "a copy from before"
    assert host.run(f"tail -n 1 {CONFIG}") == "# mine\n"
    assert "virt-dmem-hook" in host.run(f"cat {HOOK}")
    assert host.run(f"ls -A {HOOKS}").split() == ["50-virt-dmem"]


def test_a_downgrade_is_refused_only_where_the_ledger_cannot_be_read(host: Installation) -> None:
    before = host.qemu()
    host.copy(host.deb("virt-dmem"))
    host.run("systemctl stop virt-dmemd.socket virt-dmemd.service")
    in_ledger(host, f"PRAGMA user_version = {SCHEMA_VERSION + 1};")
    said = host.refuses(f"dpkg -i {host.deb('virt-dmem')}")
    assert f"has version {SCHEMA_VERSION + 1}, and it supports version {SCHEMA_VERSION}" in said
    assert "99.0" in host.run("dpkg-query -W virt-dmem")
    host.run("systemctl stop virt-dmemd.socket virt-dmemd.service")
    in_ledger(host, f"PRAGMA user_version = {SCHEMA_VERSION};")
    host.run(f"dpkg -i {host.deb('virt-dmem')}")
    assert host.status("virt-dmem") == "installed"
    assert host.qemu() == before
    assert json.loads(host.run("virt-dmem list --json"))["domains"][0]["reserved_bytes"] > 0


def test_dkms_builds_the_module_for_each_kernel_that_comes(host: Installation) -> None:
    host.run("apt-get install -y -q virt-dmem-dkms", timeout=900)
    (kernel,) = host.run("ls -d /lib/modules/*/build").split()
    assert f"{Path(kernel).parent}/" in host.run("find /lib/modules -name 'dmemfs.ko*'")
    assert "PASS  dmemfs-module: " in host.run("virt-dmem check", check=False)
    host.run(f"apt-get install -y -q --no-install-recommends {OTHER_KERNEL}/*.deb", timeout=900)
    other = next(path for path in host.run("ls -d /lib/modules/*/build").split() if path != kernel)
    built = host.run("find /lib/modules -name 'dmemfs.ko*'").split()
    assert len(built) == 2, built
    release = Path(other).parent.name
    assert release in host.run(f"modinfo -k {release} -F vermagic dmemfs")
    assert "PASS  dmemfs-module: " in host.run("virt-dmem check", check=False)
    names = "$(dpkg-deb -f {} Package)"
    host.run(f"for deb in {OTHER_KERNEL}/*.deb; do echo {names.format('$deb')}; done | xargs apt-get purge -y -q")
    assert len(host.run("find /lib/modules -name 'dmemfs.ko*'").split()) == 1


def test_check_sees_a_build_that_failed_and_the_old_kernel_keeps_its_module(host: Installation) -> None:
    new = "/lib/modules/9.9-new"
    host.run(f"mkdir -p {new}/build && touch {new}/modules.dep")
    host.container.write(f"{new}/build/Makefile", "all modules:\n\tfalse\n")
    host.run("/etc/kernel/postinst.d/dkms 9.9-new", check=False, timeout=900)  # as the package of a kernel does
    assert "building the module for 9.9-new failed" in host.run("/usr/lib/virt-dmem/module build 9.9-new")
    checked = host.run("virt-dmem check", check=False)
    assert "WARN  dmemfs-module: There is no module dmemfs for kernel 9.9-new" in checked
    assert len(host.run("find /lib/modules -name 'dmemfs.ko*'").split()) == 1
    host.run(f"rm -r {new}")


def test_a_pool_on_dmemfs_keeps_its_module(host: Installation) -> None:
    record = "/var/lib/virt-dmem/pools/large.json"
    host.container.write(record, '{"backend": "dmemfs"}')
    said = host.refuses("apt-get remove -y -q virt-dmem-dkms")
    assert "virt-dmem-dkms is not removed, because these pools are on dmemfs" in said
    assert "    large\n" in said
    host.run(f"rm {record}")


def test_the_page_for_cockpit_comes_by_a_package_of_its_own(host: Installation) -> None:
    host.run("apt-get install -y -q cockpit-virt-dmem")
    page = "/usr/share/cockpit/virt-dmem"
    assert host.run(f"ls {page}").split() == ["index.css", "index.html", "index.js", "manifest.json"]
    assert re.search(rf"^virt-dmem[ :].*{page}$", host.run("cockpit-bridge --packages"), re.MULTILINE)


def test_removing_takes_all_but_configuration_and_state(host: Installation) -> None:
    host.run("virsh -q destroy lives-on && virt-dmem unapply lives-on && virt-dmem pool destroy guests --yes")
    host.run("apt-get remove -y -q virt-dmem-dkms virt-dmem", timeout=600)
    assert host.status("virt-dmem") == "config-files"
    assert host.status("cockpit-virt-dmem") in ("none", "not-installed")
    assert host.run(f"ls {HOOK} {CONFIG} 2>/dev/null", check=False) == f"{CONFIG}\n"
    assert "virt-dmem" not in host.run(f"cat {LOCAL_RULES}", check=False)
    assert host.run("find / -xdev -name 'dmemfs.ko*'") == ""
    assert "virt-dmemd" not in host.run(
        "systemctl list-units --all --no-legend 'virt-dmemd*' | grep -v not-found", check=False
    )
    host.run("virsh -q start lives-on && virsh -q destroy lives-on && virsh -q undefine lives-on")


def test_purging_leaves_only_what_the_administrator_made(host: Installation) -> None:
    host.run("mkdir -p /etc/virt-dmem/conf.d && touch /etc/virt-dmem/conf.d/mine.toml")
    host.run("apt-get purge -y -q virt-dmem-dkms virt-dmem")
    host.run("rm -f /etc/apt/sources.list.d/virt-dmem.sources")
    after = host.files()
    assert after - host.before == {"/etc/virt-dmem", "/etc/virt-dmem/conf.d", "/etc/virt-dmem/conf.d/mine.toml"}
    assert host.before - after == set()
    assert host.run("getent group virt-dmem || echo none") == "none\n"
    assert host.run("find /run/virt-dmem /var/lib/virt-dmem 2>/dev/null", check=False) == ""
