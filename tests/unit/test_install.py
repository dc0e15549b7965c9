# SPDX-License-Identifier: GPL-2.0-or-later
"""Install and uninstall: below DESTDIR, and for real on an overlay of this host."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem import __version__
from virt_dmem.config.schema import Config
from virt_dmem.monitoring.watch.base import Sight
from virt_dmem.monitoring.watch.installed import InstalledFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGING = REPOSITORY / "packaging"
SITE = f"usr/lib/virt-dmem/python{sys.version_info.major}.{sys.version_info.minor}"
EXPECTED = {
    "etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem": 0o644,
    "etc/libvirt/hooks/qemu.d/50-virt-dmem": 0o755,
    "etc/virt-dmem/virt-dmem.toml": 0o644,
    "usr/bin/virt-dmem": 0o755,
    "usr/bin/virt-dmem-hook": 0o755,
    "usr/lib/systemd/system/virt-dmem-pool@.service": 0o644,
    "usr/lib/systemd/system/virt-dmemd.service": 0o644,
    "usr/lib/systemd/system/virt-dmem-pages.service": 0o644,
    "usr/lib/systemd/system/virt-dmem-pages.socket": 0o644,
    "usr/lib/systemd/system/virt-dmemd.socket": 0o644,
    "usr/lib/sysusers.d/virt-dmem.conf": 0o644,
    "usr/lib/tmpfiles.d/virt-dmem.conf": 0o644,
    "usr/lib/virt-dmem/integrate": 0o755,
    "usr/lib/virt-dmem/manifest": 0o644,
    "usr/lib/virt-dmem/pages": 0o755,
    "usr/sbin/virt-dmemd": 0o755,
    "usr/share/bash-completion/completions/virt-dmem": 0o644,
    "usr/share/zsh/site-functions/_virt-dmem": 0o644,
    "usr/share/doc/virt-dmem/virt-dmem.toml": 0o644,
}
INSTALLED = runpy.run_path(str(REPOSITORY / "docs/installed.py"))
MODULE = f"usr/src/virt-dmem-{__version__}"
MODULE_SOURCES = [
    path.relative_to(REPOSITORY / "kernel")
    for pattern in ("*.[ch]", "Kbuild", "Makefile")
    for path in (REPOSITORY / "kernel").rglob(pattern)
    if not path.name.endswith(".mod.c") and not path.is_relative_to(REPOSITORY / "kernel/tests")
]
if MODULE_SOURCES:
    EXPECTED |= {f"{MODULE}/{path}": 0o644 for path in MODULE_SOURCES}
    EXPECTED |= {f"{MODULE}/dkms.conf": 0o644, "usr/lib/virt-dmem/module": 0o755}
HIGHEST_EXPOSURE = 2.5
"""Limit for ``systemd-analyze security`` (it was 2.4): the daemon runs as root and sees all processes."""

_REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/>"
_OVERLAY = """
mount -t tmpfs none /mnt
for directory in usr etc var/lib; do
    mkdir -p "/mnt/$directory/new" "/mnt/$directory/work"
    layers="lowerdir=/$directory,upperdir=/mnt/$directory/new,workdir=/mnt/$directory/work"
    mount -t overlay -o "$layers" overlay "/$directory"
done
mount -t tmpfs -o mode=0755 none /run
echo ready
exec cat    # until the pipe is closed
"""


def script(name: str, destdir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PACKAGING / name], env=os.environ | {"DESTDIR": str(destdir), "PREFIX": "/usr"} | env,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def install(destdir: Path, **env: str) -> None:
    done = script("install.sh", destdir, **env)
    assert done.returncode == 0, done.stderr


def files_in(directory: Path) -> dict[str, int]:
    """Return path and mode of every file, except those of the Python packages."""
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode)
        for path in directory.rglob("*")
        if not path.is_dir() and not path.relative_to(directory).is_relative_to(SITE)
    }


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destdir = tmp_path_factory.mktemp("stage") / "root"
    install(destdir)
    return destdir


@pytest.fixture
def installed(staged: Path, tmp_path: Path) -> Path:
    """Return a modifiable copy of the staged files."""
    return Path(shutil.copytree(staged, tmp_path / "root", symlinks=True))


class Host:
    """A mount namespace with writable overlays of this host's /usr, /etc and /var/lib."""

    def __init__(self) -> None:
        command = ["unshare", "-m", "--propagation", "private", "sh", "-e", "-c", _OVERLAY]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        inside = [
            "nsenter",
            "--target",
            str(self._holder.pid),
            "--mount",
            "--root",
            f"--wdns={REPOSITORY}",
            *map(str, command),
        ]
        done = subprocess.run(
            inside, capture_output=True, text=True, check=False, env=os.environ | {"DESTDIR": "", "PREFIX": "/usr"}
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def new_files(self) -> set[str]:
        """Return the files written in the overlays, without directories."""
        found = self.run("find", "/mnt/usr/new", "/mnt/etc/new", "/mnt/var/lib/new", "!", "-type", "d").stdout
        return {re.sub("^/mnt/(.*?)/new", r"/\1", path) for path in found.split()}

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_every_file_comes_to_its_place_with_its_mode(staged: Path) -> None:
    pages = {
        f"usr/share/man/man{page.suffix[1:]}/{page.name}": 0o644 for page in REPOSITORY.glob("docs/man/*.[1-8]")
    }
    documents = {f"usr/share/doc/virt-dmem/{place}": 0o644 for place in INSTALLED["places"]().values()}
    assert documents.keys() >= {
        f"usr/share/doc/virt-dmem/{place}" for place in ("README.md", "guide/operations.md", "reference/json.md")
    }
    assert files_in(staged) == EXPECTED | pages | documents


def test_the_hook_is_a_file_of_its_own_and_the_only_one_libvirt_would_run(staged: Path) -> None:
    (hook,) = (path for path in (staged / "etc/libvirt/hooks").rglob("*") if not path.is_dir())
    assert hook.name == "50-virt-dmem"
    assert not hook.is_symlink()
    assert hook.read_text() == (REPOSITORY / "hooks/qemu.d/50-virt-dmem").read_text().replace("@PREFIX@", "/usr")


def test_the_hook_runs_what_was_installed_with_it(staged: Path, tmp_path: Path) -> None:
    package = staged / SITE / "virt_dmem"
    assert (staged / "usr/bin/virt-dmem-hook").read_bytes() == (package / "native/virt-dmem-hook").read_bytes()
    install(tmp_path / "root", PREFIX="/opt/virt-dmem")
    hook = (tmp_path / "root/etc/libvirt/hooks/qemu.d/50-virt-dmem").read_text()
    assert 'exec "/opt/virt-dmem/bin/virt-dmem-hook"' in hook
    assert os.access(tmp_path / "root/opt/virt-dmem/bin/virt-dmem-hook", os.X_OK)


def test_no_file_knows_where_it_was_built_or_staged(staged: Path, tmp_path: Path) -> None:
    foreign = [
        str(staged),
        str(staged.parent),
        str(REPOSITORY / "virt_dmem"),
        str(REPOSITORY / ".cache"),
        "/tmp/tmp.",
    ]
    for path in staged.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [name for name in foreign if name.encode() in content], path


def test_no_placeholder_is_left_in_what_is_installed(staged: Path) -> None:
    left = re.compile(rb"@(PREFIX|VERSION|MODULE|DIRECTORIES|PYTHON)@|#MODULE_VERSION#")
    places = ["usr/lib/virt-dmem", "usr/src", "usr/bin", "usr/sbin", "etc"]
    files = [
        path for place in places for path in (staged / place).rglob("*") if path.is_file() and SITE not in str(path)
    ]
    assert [str(path) for path in files if left.search(path.read_bytes())] == []


def test_only_root_may_write_what_is_installed(staged: Path) -> None:
    loose = [path for path in staged.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert loose == []


def test_the_package_is_complete(staged: Path) -> None:
    package = staged / SITE / "virt_dmem"
    assert os.access(package / "native/virt-dmem-prefault", os.X_OK)
    assert (package / "xml-templates/memory-backing.xml").exists()
    for dependency in ("msgspec", "lxml", "libvirt.py", "qemu/qmp", "pyudev"):
        assert (staged / SITE / dependency).exists()


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    destdir = tmp_path / "root"
    (destdir / "etc/libvirt").mkdir(parents=True)
    install(destdir)
    install(destdir)
    done = script("uninstall.sh", destdir)
    assert (done.returncode, done.stderr) == (0, "")
    assert [str(path.relative_to(destdir)) for path in destdir.rglob("*")] == ["etc", "etc/libvirt"]


def test_a_changed_configuration_survives_install_and_uninstall(installed: Path) -> None:
    config = installed / "etc/virt-dmem/virt-dmem.toml"
    config.write_text('default_pool = "mine"\n')
    done = script("install.sh", installed)
    assert "was modified and is kept" in done.stdout
    done = script("uninstall.sh", installed)
    assert "was modified and is kept" in done.stdout
    assert files_in(installed) == {"etc/virt-dmem/virt-dmem.toml": 0o644}
    assert config.read_text() == 'default_pool = "mine"\n'


def test_uninstall_is_refused_while_a_domain_has_its_memory_from_us(installed: Path) -> None:
    before = files_in(installed)
    domains = installed / "etc/libvirt/qemu"
    domains.mkdir()
    (domains / "of others.xml").write_text("<domain><name>of others</name></domain>")
    (domains / "my guest.xml").write_text(f"<domain><name>my guest</name><metadata>{_REQUEST}</metadata></domain>")
    done = script("uninstall.sh", installed)
    assert done.returncode == 1
    assert "my guest\n" in done.stderr
    assert "of others" not in done.stderr
    assert "virt-dmem unapply" in done.stderr
    assert files_in(installed).items() >= before.items()


def test_uninstall_is_refused_while_a_guest_runs_that_is_not_persistent(installed: Path) -> None:
    running = installed / "run/libvirt/qemu"
    running.mkdir(parents=True)
    (running / "passing.xml").write_text(f"<domstatus><domain><metadata>{_REQUEST}</metadata></domain></domstatus>")
    done = script("uninstall.sh", installed)
    assert done.returncode == 1
    assert "passing\n" in done.stderr


def test_uninstall_is_refused_while_a_guest_runs_on_pool_memory_without_its_xml_saying_so(installed: Path) -> None:
    """Taken by a rule, or unapplied since it started."""
    uuids = {name: str(uuid.uuid4()) for name in ("adopted", "ended", "elsewhere")}
    running = installed / "run/libvirt/qemu"
    running.mkdir(parents=True)
    for name in ("adopted", "elsewhere"):
        (running / f"{name}.xml").write_text(f"<domstatus><domain><uuid>{uuids[name]}</uuid></domain></domstatus>")
    for name in ("adopted", "ended"):
        extent = installed / f"run/virt-dmem/pools/guests/libvirt-{uuids[name]}/pc.ram"
        extent.parent.mkdir(parents=True)
        extent.touch()
    (installed / f"run/virt-dmem/pools/guests/libvirt-{uuids['elsewhere']}").mkdir()
    before = files_in(installed)
    done = script("uninstall.sh", installed)
    assert done.returncode == 1
    assert "pools:\n    adopted\nShut down" in done.stderr
    assert files_in(installed).items() >= before.items()
    (running / "adopted.xml").unlink()
    assert script("uninstall.sh", installed).returncode == 0


def test_an_old_libvirts_apparmor_rules_are_made_to_include_ours(installed: Path) -> None:
    local = installed / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    local.parent.mkdir(parents=True)
    local.write_text("# my own\n")
    abstraction = installed / "etc/apparmor.d/abstractions/libvirt-qemu"
    abstraction.write_text("  #include <local/abstractions/libvirt-qemu>\n")
    install(installed)
    assert local.read_text() == "# my own\ninclude if exists <abstractions/libvirt-qemu.d/virt-dmem>\n"
    script("uninstall.sh", installed)
    assert local.read_text() == "# my own\n"


def test_an_apparmor_file_of_the_administrators_keeps_its_lines_whatever_happens(installed: Path) -> None:
    """The full disk is a stand-in: a grep that writes a part and fails."""
    local = installed / "etc/apparmor.d/local/abstractions/libvirt-qemu"
    local.parent.mkdir(parents=True)
    local.write_text("/srv/** r,")  # without an end of line
    manifest = installed / "usr/lib/virt-dmem/manifest"
    ours = "include if exists <abstractions/libvirt-qemu.d/virt-dmem>"
    with manifest.open("a") as file:
        file.write(f"L /etc/apparmor.d/local/abstractions/libvirt-qemu {ours}\n")
    integrate = installed / "usr/lib/virt-dmem/integrate"
    env = os.environ | {"DESTDIR": str(installed)}
    subprocess.run([integrate, "connect"], env=env, check=True, capture_output=True)
    assert local.read_text() == f"/srv/** r,\n{ours}\n"

    programs = installed / "programs"
    programs.mkdir()
    (programs / "grep").write_text("#!/bin/sh\nprintf '/sr'\nexit 2\n")
    (programs / "grep").chmod(0o755)
    full = env | {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run([integrate, "disconnect"], env=full, check=True)
    assert local.read_text() == f"/srv/** r,\n{ours}\n"
    assert list(local.parent.iterdir()) == [local]
    subprocess.run([integrate, "disconnect"], env=env, check=True)
    assert local.read_text() == "/srv/** r,\n"


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.needs_libvirt
def test_a_reload_of_libvirt_is_remembered_only_if_it_worked(installed: Path, tmp_path: Path, status: int) -> None:
    """systemctl is a fake, for which only libvirtd runs."""
    fake = tmp_path / "bin/systemctl"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *is-active*libvirtd*) ;; *is-active*) exit 3 ;; *) exit {status} ;; esac\n'
    )
    fake.chmod(0o755)
    script = 'mount -t tmpfs run /run; mkdir -p /run/systemd/system; "$0" reload; test -e /run/virt-dmem/libvirt-*'
    integrate = installed / "usr/lib/virt-dmem/integrate"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, integrate],
        env=os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "DESTDIR": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == status


def test_the_modules_package_can_go_once_the_program_that_it_names_is_gone(tmp_path: Path) -> None:
    """As when both are removed at once, and the program's package came first."""
    prerm = (PACKAGING / "debian/virt-dmem-dkms.prerm").read_text()
    for directory in ("/usr/bin", "/var/lib"):
        prerm = prerm.replace(directory, f"{tmp_path}{directory}")
    record, program = tmp_path / "var/lib/virt-dmem/pools/large.json", tmp_path / "usr/bin/virt-dmem"
    for path in (record, program):
        path.parent.mkdir(parents=True)
        path.write_text('{"backend": "dmemfs"}')
    program.chmod(0o755)
    command = ["sh", "-c", prerm, "prerm", "remove"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "    large\n" in refused.stderr) == (1, True)
    program.unlink()
    subprocess.run(command, check=True)


def test_what_is_installed_for_libvirt_apparmor_and_systemd_is_watched(installed: Path) -> None:
    look = InstalledFiles(installed / "usr/lib/virt-dmem/manifest")
    sight = Sight(Config(), [], installed)
    assert [*look(sight)] == []
    watched = (
        "etc/libvirt/hooks/qemu.d/50-virt-dmem",
        "usr/bin/virt-dmem-hook",
        "etc/apparmor.d/abstractions/libvirt-qemu.d/virt-dmem",
        "usr/lib/systemd/system/virt-dmem-pool@.service",
    )
    for path in watched:
        with (installed / path).open("ab") as file:
            file.write(b"#")
    assert {one.subject for one in look(sight)} == {f"/{path}" for path in watched}


def test_what_an_earlier_version_installed_and_this_does_not_goes_away(installed: Path) -> None:
    manifest = installed / "usr/lib/virt-dmem/manifest"
    (installed / "usr/bin/virt-dmem-old").write_text("")
    (installed / "usr/src/virt-dmem-0/old").mkdir(parents=True)
    old = "D /usr/src/virt-dmem-0\nD /usr/src/virt-dmem-0/old\nF /usr/bin/virt-dmem-old\n"
    manifest.write_text(f"{manifest.read_text()}{old}")
    install(installed)
    assert files_in(installed).items() >= EXPECTED.items()
    assert not (installed / "usr/bin/virt-dmem-old").exists()
    assert not (installed / "usr/src/virt-dmem-0").exists()


def asked_for(purpose: str, programs: Path) -> set[str]:
    """Return the packages that the set-up asks for where none is installed.

    ``dpkg-query`` and ``id`` are fakes: nothing is installed, and whoever asks is not root.
    """
    programs.mkdir(exist_ok=True)
    for name, text in {"dpkg-query": "exit 1", "id": "echo 1000"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [PACKAGING / "setup.sh", purpose], capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    return set(done.stderr.partition("only root can install the missing packages: ")[2].split())


def test_installing_asks_for_a_compiler_and_headers_and_for_nothing_that_only_tests_need(tmp_path: Path) -> None:
    wanted = asked_for("install", tmp_path / "programs")
    assert {"gcc", "libjson-c-dev", "libvirt-dev"} <= wanted
    assert [name for name in wanted if re.match("qemu|libvirt-(daemon|clients)|mmdebstrap|strace", name)] == []
    assert wanted < asked_for("tests", tmp_path / "programs")


def test_make_install_prepares_for_installing_only() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "install"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"packaging/\S+.*", shown) == ["packaging/setup.sh install", "packaging/install.sh"]


def test_what_is_installed_where_is_said_and_that_nothing_was_started_below_a_destdir(tmp_path: Path) -> None:
    said = script("install.sh", tmp_path / "root").stdout
    assert f"virt-dmem {__version__} is installed in {tmp_path}/root:\n" in said
    for path in re.findall(r"^install:     (/\S+)", said, re.MULTILINE):
        assert (tmp_path / f"root{path}").exists(), path
    assert "nothing was started" in said
    assert "next:" not in said


def test_a_destdir_that_sh_could_misread_is_refused(tmp_path: Path) -> None:
    done = script("install.sh", tmp_path / "a b|c")
    assert done.returncode == 1
    assert "plain paths" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_example_configuration_has_every_key_with_its_default() -> None:
    lines = (PACKAGING / "virt-dmem.toml").read_text().splitlines()
    example = tomllib.loads("\n".join(re.sub(r"^#(?=[a-z_]+ = )", "", line) for line in lines))
    assert example == msgspec.json.decode(msgspec.json.encode(Config()))
    assert tomllib.loads("\n".join(lines)) == {"daemon": {}, "libvirt": {}, "prefault": {}, "metrics": {}}, (
        "as it comes it sets nothing"
    )


@pytest.mark.needs_libvirt
def test_an_installed_host_works_and_an_uninstalled_one_is_as_before(host: Host) -> None:
    said = host.run("packaging/install.sh").stdout
    assert f"virt-dmem {__version__} is installed:\n" in said
    steps = re.findall(r"^install:     ([a-z].*?)  ", said.partition("next:\n")[2], re.MULTILINE)
    assert steps[0] == "systemctl try-reload-or-restart libvirtd.service"
    assert "virt-dmem check" in steps
    again = host.run("packaging/install.sh").stdout
    assert "try-reload-or-restart" not in again, "libvirt knows the hook already"
    for program in ("/usr/bin/virt-dmem", "/usr/bin/virt-dmem-hook", "/usr/sbin/virt-dmemd"):
        assert __version__ in host.run(program, "--version").stdout
    assert host.run("stat", "-c", "%a", "/run/virt-dmem", "/run/virt-dmem/pools", "/var/lib/virt-dmem").stdout == (
        "755\n711\n700\n"
    )
    host.run("getent", "group", "virt-dmem")
    checked = host.run("virt-dmem", "check", check=False).stdout
    assert "PASS  hook: " in checked
    assert "PASS  hook-client: /usr/bin/virt-dmem-hook runs." in checked
    undo = "echo '<domain type=\"qemu\"><name>a</name><memory>65536</memory><os><type>hvm</type></os></domain>' |"
    assert "https://virt-dmem.dev/xmlns" in host.run("sh", "-c", f"{undo} virt-dmem rewrite --pool small").stdout

    host.run("mkdir", "-p", "/etc/libvirt/qemu")
    host.run("sh", "-c", f'echo "{_REQUEST}" >/etc/libvirt/qemu/alpha.xml')
    refused = host.run("packaging/uninstall.sh", check=False)
    assert refused.returncode == 1
    assert "alpha\n" in refused.stderr
    host.run("rm", "/etc/libvirt/qemu/alpha.xml")

    host.run("packaging/uninstall.sh")
    left = host.new_files()
    assert {path for path in left if "virt-dmem" in path} == set()
    assert {path for path in left if "__pycache__" not in path} <= {
        *("/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/.pwd.lock"),  # the group stays
        "/etc/apparmor.d/local/abstractions/libvirt-qemu",
    }


@pytest.mark.needs_libvirt
def test_systemd_finds_no_fault_with_the_units(host: Host) -> None:
    host.run("packaging/install.sh")
    ours = ["virt-dmemd.service", "virt-dmem-pool@small.service"]
    host.run("systemctl", "--root=/", "enable", *ours)
    for units in (
        [*ours, "virt-dmemd.socket", "virt-dmem-pages.service", "virt-dmem-pages.socket"],
        ["multi-user.target", "libvirtd.service", "libvirt-guests.service"],  # nor an ordering cycle with those
    ):
        said = host.run("systemd-analyze", "verify", "--man=no", *units, check=False)
        assert said.returncode == 0 or units[0] not in ours  # the others may have errors of their own
        assert [line for line in said.stderr.splitlines() if "virt-dmem" in line or "cycle" in line] == []
    said = host.run("systemd-analyze", "security", "--offline=true", "--no-pager", "virt-dmemd.service")
    (level,) = re.findall(r"Overall exposure level for virt-dmemd.service: ([\d.]+)", said.stdout)
    print(f"systemd-analyze security: {level}")
    assert float(level) <= HIGHEST_EXPOSURE


@pytest.mark.needs_libvirt
def test_an_installed_program_of_another_python_says_so(host: Host) -> None:
    host.run("packaging/install.sh")
    host.run("sh", "-c", f"mv /{SITE} /usr/lib/virt-dmem/python2.7")
    done = host.run("virt-dmem", "--version", check=False)
    assert done.returncode == 1
    assert "Install it again" in done.stderr
