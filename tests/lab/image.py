# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the disk of a Debian host from packages only: no installer, no loop device, no mounts on this host.

First the root, cached in ``.cache/lab`` under a key of all its inputs: ``mmdebstrap`` creates it, and ``make
setup`` runs in it, so that ``make install`` works there without a network. Then, whenever the project has
changed, a disk: the project's files are copied into a copy of the root, ``make install`` runs in it, and ``mke2fs
-d`` creates the disk. ``python -m tests.lab.image`` does only this.

``make install`` finds no running systemd here, so the skipped steps are done for it; ``test_installation`` runs it
in full on a booted host.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from tests.lab.architecture import AMD64, Architecture
from tests.lab.emulation import COMPILER, EMULATORS, LEND, LENT, arm64_emulated, provide_programs
from tests.rig.processes import RigError
from virt_dmem.native.build import PROGRAMS

__all__ = [
    "PROJECT",
    "Image",
    "NoPackages",
    "missing_for_lab",
    "pack_tree",
    "suite",
    "the_bare_root",
    "the_image",
    "the_root",
    "the_root_with",
]

_REPOSITORY = Path(__file__).parents[2]
_CACHE = _REPOSITORY / ".cache/lab"
_SETUP = _REPOSITORY / "packaging/setup.sh"
_PROGRAMS = ("mmdebstrap", "mke2fs", "qemu-img", "qemu-system-x86_64", "systemd-nspawn", "unshare")
_OF_DEBIAN = re.compile(r"^(?:URIs:|deb(?:\s+\[.*?\])?)\s+(\S+/debian)/?(?:\s|$)", re.MULTILINE)
_PACKAGES = """
    systemd systemd-sysv udev dbus kmod iproute2 procps numactl ca-certificates qemu-guest-agent apparmor
"""
_NOT_WANTED = ("/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/qemu/*.img")
_EMULATOR = "trixie"
"""Its QEMU 10 runs a thread for each CPU; with 7.2 nested guests hang, and one CPU hits another's int3."""
_DISK_SIZE = "6G"
"""Sparse: unwritten parts take no space."""

PROJECT = "/root/virt-dmem"
"""The directory of the project's files on the lab's host, beside the image's .venv and .cache."""

_MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_console")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
until /bin/busybox mount -t ext4 -o noatime,nobarrier /dev/vda /root; do /bin/busybox sleep 0.1; done
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
_IN_THE_ROOT = """
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd {project}
{setup}
rm -rf /var/cache/apt/archives/*.deb /root/.cache /boot/initrd.img-*
systemctl --quiet enable qemu-guest-agent.service || true
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer logrotate.timer \\
    man-db.timer e2scrub_all.timer e2scrub_reap.service libvirt-guests.service getty@tty1.service \\
    systemd-networkd-wait-online.service remote-fs.target machines.target
cd /etc/apparmor.d
for profile in *; do
    case $profile in
    abi | abstractions | disable | force-complain | local | libvirt | tunables) ;;
    *libvirt*) ;;
    *) rm -rf "$profile" ;; # each costs seconds at boot, and none is about guests
    esac
done
"""
_MORE = """
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
units() {{ find /etc/systemd/system -path '*.wants/*' | sort; }}
units >/run/units
echo 'exit 101' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -q update
apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io install {names}
rm /usr/sbin/policy-rc.d
units | comm -13 /run/units - | xargs -r rm
rm -rf /var/cache/apt/archives/*.deb
"""
_LEAN = """
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
{project}/packaging/setup.sh install
rm -rf /var/cache/apt/archives/*.deb /root/.cache
"""
_INSTALL = """
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
make --silent -C {project} install
systemctl --quiet enable virt-dmemd.service
"""
_FILES = {
    # newer than /usr: else systemd takes the first boot for one after an update, and runs ldconfig and the like
    "etc/.updated": "",
    "var/.updated": "",
    "etc/hostname": "lab\n",
    "etc/fstab": "",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=60s\n",
}


_GETTY = "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - vt220\n"


class NoPackages(RigError):
    """The packages of that Debian release are not reachable."""


@dataclasses.dataclass(frozen=True)
class Image:
    """The image of the lab's host. ``disk`` is raw ext4 and read-only: a machine writes to a layer above it."""

    suite: str
    disk: Path
    kernel: Path
    initrd: Path
    root: Path
    """The files of the disk, without the project; read-only."""
    emulator: Path
    """The root directory with the QEMU that runs it: that of ``_EMULATOR``."""
    architecture: Architecture = AMD64


def suite() -> str:
    """The Debian release of the lab: LAB_SUITE, by default trixie (13); "trixie-backports" is 13 with backports."""
    return os.environ.get("LAB_SUITE", "trixie")


def missing_for_lab() -> str:
    """Return what the lab lacks on this machine, as in "needs root"; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [program for program in _PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"needs {', '.join(lacking)} ('make setup' installs them)"
    return ""


def the_image(release: str = "", architecture: Architecture = AMD64) -> Image:
    """Return the disk of Debian ``release`` with the project installed, from the cache or newly built.

    Building takes two minutes and the network, or half a minute if only the project has changed; of a foreign
    architecture, whose programs are emulated, several times that.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    :raise RigError: When it cannot be built; with the last lines of output.
    """
    release = release or suite()
    with _only_one_at_a_time(), tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as name:
        making = Path(name)
        emulator = _emulators(making) if architecture.is_foreign else None
        base = _base(release, making, architecture, emulator)
        pack_tree(making / "tree.tar")
        installed = base / f"installed-{_digest([making / 'tree.tar'])}"
        if not installed.exists():
            _remove(base.glob("installed-*"))
            with _runs(emulator):
                _timed(f"the disk of {base.name}", lambda: _make_disk(base / "root", making, emulator))
            (making / "disk").rename(installed)
        emulator = emulator or _base(_EMULATOR, making) / "root"
    return Image(release, installed, base / "kernel", base / "initrd", base / "root", emulator, architecture)


def the_root(release: str) -> Path:
    """Return the root of Debian ``release`` with what ``make setup`` installs, from the cache or newly built.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    :raise RigError: When it cannot be built; with the last lines of output.
    """
    with _only_one_at_a_time(), tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as name:
        return _base(release, Path(name)) / "root"


def the_bare_root(release: str) -> Path:
    """Return a root of Debian ``release`` with what ``make install`` asks for and no more: no libvirt, no QEMU.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    :raise RigError: When it cannot be built; with the last lines of output.
    """
    with _only_one_at_a_time(), tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as name:
        bare = _CACHE / f"bare-{release}-{_key(release)}"
        if not bare.exists():
            _require_packages(release)
            _remove(_CACHE.glob(f"bare-{release}-{'[0-9a-f]' * 16}"))
            made = Path(name) / "root"
            _timed(f"the bare root of {release}", lambda: _make_bare(release, made))
            made.rename(bare)
    return bare


def the_root_with(release: str, packages: Iterable[str]) -> Path:
    """Return a root as ``the_root`` does that has these packages too; none of their units starts by itself.

    :raise NoPackages: When the cache is empty, and the mirror does not answer.
    :raise RigError: When it cannot be built; with the last lines of output.
    """
    names = " ".join(sorted(packages))
    with _only_one_at_a_time(), tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as name:
        base = _base(release, Path(name))
        more = base / f"with-{_digest([], names)}"
        if not more.exists():
            _require_packages(release)
            made = Path(name) / "root"
            _run("cp", "-a", "--reflink=auto", base / "root", made)
            with _network_of_this_host(made):
                _timed(f"the root of {release} with {names}", lambda: _run_in(made, _MORE.format(names=names)))
            made.rename(more)
    return more


def _base(release: str, making: Path, architecture: Architecture = AMD64, emulator: Path | None = None) -> Path:
    """Return the common base of a release's disks, built if needed: its root, kernel and initramfs."""
    name = f"{architecture.name}-{release}" if architecture.is_foreign else release
    base = _CACHE / f"{name}-{_key(release)}"
    if not base.exists():
        _require_packages(release)
        _remove(_CACHE.glob(f"{name}-{'[0-9a-f]' * 16}"))
        with _runs(emulator):
            _timed(f"the root of {name}", lambda: _make_base(release, making / name, architecture, emulator))
        (making / name).rename(base)
    return base


def _emulators(making: Path) -> Path:
    """Return a root of ``_EMULATOR``, unpacked only, with what runs here when a foreign root is built."""
    there = _CACHE / f"emulators-{_EMULATOR}-{_digest([], EMULATORS + LENT)}"
    if not there.exists():
        _require_packages(_EMULATOR)
        _remove(_CACHE.glob(f"emulators-{_EMULATOR}-{'[0-9a-f]' * 16}"))
        made = making / "emulators"
        made.mkdir()
        _timed("the emulators", lambda: _debootstrap(_EMULATOR, made, EMULATORS.split(), variant="extract"))
        provide_programs(made)
        made.rename(there)
    return there


def _runs(emulator: Path | None) -> AbstractContextManager[None]:
    """Return a context manager in which this machine runs programs of the architecture that needs an emulator."""
    return arm64_emulated() if emulator else nullcontext()


def _key(release: str) -> str:
    inputs = [Path(__file__), Path(__file__).with_name("architecture.py"), _SETUP]
    inputs += [_REPOSITORY / "pyproject.toml", _REPOSITORY / "tests/rig/guest.py"]
    return _digest([*inputs, *sorted((_REPOSITORY / "virt_dmem/native").glob("*.c"))], release)


def _digest(files: list[Path], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _timed(what: str, make: Callable[[], None]) -> None:
    started = time.monotonic()
    make()
    print(f"lab: made {what} in {time.monotonic() - started:.0f} s")


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _only_one_at_a_time() -> Iterator[None]:
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_base(release: str, target: Path, architecture: Architecture, emulator: Path | None) -> None:
    root = target / "root"
    root.mkdir(parents=True)
    packages = [*_setup_packages("packages"), *_PACKAGES.split(), *architecture.packages.split()]
    if not architecture.is_foreign:  # emulated, each package costs seconds
        packages += _setup_packages("test_packages")
    _debootstrap(release, root, packages, architecture, native=emulator)
    _set_up(root, _IN_THE_ROOT, emulator, setup=architecture.setup)
    getty = f"etc/systemd/system/serial-getty@{architecture.console}.service.d/lab.conf"
    for path, text in {**_FILES, getty: _GETTY, "etc/modules-load.d/lab.conf": architecture.modules}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(vmlinuz, target / "kernel")
    (target / "initrd").write_bytes(_initramfs(root))


def _make_bare(release: str, root: Path) -> None:
    root.mkdir()
    _debootstrap(release, root, ["ca-certificates", *_setup_packages("packages")])
    _set_up(root, _LEAN)


def _make_disk(base: Path, making: Path, emulator: Path | None) -> None:
    root = making / "root"
    _run("cp", "-a", "--reflink=auto", base, root)
    _run("tar", "-C", root / PROJECT[1:], "-xf", making / "tree.tar")
    _run_in(root, _INSTALL.format(project=PROJECT), emulator)
    options = "lazy_itable_init=1,lazy_journal_init=1"
    _run("mke2fs", "-q", "-t", "ext4", "-E", options, "-d", root, making / "disk", _DISK_SIZE)


def pack_tree(target: Path) -> None:
    """Pack the project's current files, reproducibly."""
    listed = subprocess.run(
        ["git", "-C", _REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    there = b"\0".join(name for name in listed.split(b"\0") if name and (_REPOSITORY / name.decode()).is_file())
    same = ["--owner=0", "--group=0", "--mtime=@0", "--sort=name"]
    subprocess.run(
        ["tar", "-C", _REPOSITORY, "--null", "--files-from=-", *same, "-cf", target], input=there, check=True
    )


def _setup_packages(name: str) -> list[str]:
    """Return a list of packages in packaging/setup.sh."""
    listed = re.search(rf'^{name}="(.*?)"', _SETUP.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert listed is not None
    return listed[1].split()


def _debootstrap(
    release: str,
    root: Path,
    packages: list[str],
    architecture: Architecture = AMD64,
    *,
    variant: str = "minbase",
    native: Path | None = None,
) -> None:
    command = ["unshare", "--mount", "--propagation", "private"] if native else []  # its hooks mount, too
    command += ["mmdebstrap", f"--variant={variant}", "--mode=root", "--quiet"]
    command += ["--aptopt=APT::Install-Recommends false", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in _NOT_WANTED] + ["--dpkgopt=force-confold"]
    # its own initramfs is not used, and building it takes a third of the whole time
    command += [
        "--essential-hook=mkdir -p $1/etc/initramfs-tools",
        "--essential-hook=echo update_initramfs=no >$1/etc/initramfs-tools/update-initramfs.conf",
    ]
    if architecture.is_foreign:
        command += [f"--architectures={architecture.name}", "--skip=check/qemu"]  # _runs has seen to that
        command += ["--dpkgopt=force-unsafe-io", f'--extract-hook=root=$1 native="{native}"; {LEND}']
    if architecture.is_foreign or variant == "extract":
        command += _keeping_packages(_CACHE / f"archives-{architecture.name}", variant)
    stable, _, backports = release.partition("-")
    lines = [f"deb {_mirror()} {suite} main" for suite in dict.fromkeys((stable, release))]
    if backports:  # all that is there, not only what is asked for
        command.append(f'--aptopt=APT::Default-Release "{release}"')
    # a kernel's package makes one in spite of the above
    _run(*command, stable, root, *lines, env={**os.environ, "INITRD": "No"})


def _keeping_packages(archives: Path, variant: str) -> list[str]:
    """Return mmdebstrap's options to keep what it downloads: emulated, a root is made too seldom to waste a try."""
    archives.mkdir(exist_ok=True)
    there = "/var/cache/apt/archives"
    last = "extract" if variant == "extract" else "customize"
    return [
        "--skip=essential/unlink",
        f'--setup-hook=mkdir -p "$1{there}"',
        f"--setup-hook=sync-in {archives} {there}/",
        f"--{last}-hook=sync-out {there} {archives}",
    ]


def _require_packages(release: str) -> None:
    url = f"{_mirror()}/dists/{release}/InRelease"
    try:
        with urllib.request.urlopen(url, timeout=60):
            pass
    except OSError as error:
        raise NoPackages(f"The packages of {release} are out of reach: {url}: {error}") from error


def _mirror() -> str:
    """Return this host's Debian mirror, or Debian's own where it is not clear."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = [uri for file in lists if file.is_file() for uri in _OF_DEBIAN.findall(file.read_text("utf-8"))]
    return found[0] if found else "http://deb.debian.org/debian"


def _set_up(root: Path, script: str, cross: Path | None = None, **values: str) -> None:
    """Copy to ``root`` what a set-up needs and run ``script`` there, with this host's network settings."""
    project = root / PROJECT[1:]
    project.mkdir(parents=True)
    for name in (
        "pyproject.toml",
        "Makefile",
        "README.md",
        "LICENSE",
        "hatch_build.py",
        "virt_dmem",
        "hooks",
        "xml-templates",
        "packaging",
        "tests",
    ):
        _run("cp", "-a", _REPOSITORY / name, project)
    for built in PROGRAMS:
        (project / "virt_dmem/native" / built).unlink(missing_ok=True)
    with _network_of_this_host(root):
        _run_in(root, script.format(project=PROJECT, **values), cross)


@contextmanager
def _network_of_this_host(root: Path) -> Iterator[None]:
    """Lend ``root`` this host's network settings."""
    lent = [Path(path) for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")]
    lent += [Path(os.environ[name]) for name in ("SSL_CERT_FILE", "PIP_CERT") if name in os.environ]
    lent += [path for path in Path("/etc/apt/apt.conf.d").iterdir() if path.is_file()]
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    was = {path: (root / str(path)[1:]).read_bytes() for path in lent if (root / str(path)[1:]).is_file()}
    for path in lent:
        if path.exists():
            (root / str(path)[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / str(path)[1:])
    if wheels.startswith("/"):
        (root / wheels[1:]).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in lent:
            (root / str(path)[1:]).unlink(missing_ok=True)
            if path in was:
                (root / str(path)[1:]).write_bytes(was[path])


def _run_in(root: Path, script: str, cross: Path | None = None) -> None:
    """Run a shell script with ``root`` as its root and this host's kernel; ``cross``: see ``LEND``."""
    lent = f"root=$0 native=$2; {LEND} {COMPILER}" if cross else ""
    mounts = 'mount -t proc proc "$0/proc"; mount --rbind /sys "$0/sys"; mount --rbind /dev "$0/dev"; '
    mounts += f'mount -t tmpfs run "$0/run"; {lent} exec chroot "$0" /bin/sh -c "$1"'
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    _run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec", mounts, root, script, cross or ""),
        env=environment,
    )


def _initramfs(root: Path) -> bytes:
    (modules,) = (root / "usr/lib/modules").iterdir()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "bin").mkdir()
        (tree / "modules").mkdir()
        shutil.copy(root / "usr/bin/busybox", tree / "bin/busybox")
        (tree / "init").write_text(_INIT)
        (tree / "init").chmod(0o755)
        for number, file in enumerate(_with_dependencies(modules, _MODULES)):
            data = file.read_bytes()
            plain = lzma.decompress(data) if file.suffix == ".xz" else data
            (tree / f"modules/{number:02}-{file.name.partition('.')[0]}.ko").write_bytes(plain)
        listing = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        archive = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
        return subprocess.run(archive, input=listing.encode(), stdout=subprocess.PIPE, check=True, cwd=tree).stdout


def _with_dependencies(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of the modules ``names`` and their dependencies, in load order (modules.dep)."""
    needs = {}
    for line in (modules / "modules.dep").read_text("utf-8").splitlines():
        file, _, others = line.partition(":")
        needs[file] = others.split()
    by_name = {Path(file).name.partition(".")[0].replace("-", "_"): file for file in needs}
    wanted: dict[str, None] = {}
    for name in names:
        if file := by_name.get(name):  # else it is built in
            wanted.update(dict.fromkeys([*reversed(needs[file]), file]))
    wanted.update(dict.fromkeys(file for name in ("crc32c_generic",) if (file := by_name.get(name))))
    return [modules / file for file in wanted]


def _run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RigError(f"{command[0]} failed with status {done.returncode}:\n{said}")


if __name__ == "__main__":
    try:
        made = the_image()
    except RigError as error:
        sys.exit(str(error))
    print(f"lab: Debian {made.suite}: {made.disk}")
