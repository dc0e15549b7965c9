# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the scripts that build packages in a fake of a Debian root: busybox, where a build fails or never ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY

pytestmark = pytest.mark.needs_libvirt

BUILDERS = {"deb.sh": "dpkg-buildpackage", "rpm.sh": "rpmbuild"}
PROGRAMS = ("sh", "mktemp", "cp", "tar", "mkdir", "tail", "sleep", "touch", "find")
MODULES = ("asyncvarlink-1", "qemu_qmp-1", "msgspec-1")
ENDLESS = "touch /share/started; sleep 3600"


def run(*command: str | Path, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class Checkout:
    """A tree with the scripts, whose root of Debian is busybox, and whose programs build nothing."""

    def __init__(self, tree: Path) -> None:
        self.tree, self.tmp = tree, tree.parent / "tmp"
        self.tmp.mkdir()
        without = shutil.ignore_patterns("node_modules")
        shutil.copytree(REPOSITORY / "packaging", tree / "packaging", ignore=without)
        (tree / "virt_dmem").mkdir()
        (tree / "virt_dmem/__init__.py").write_text('__version__ = "0.1"\n')
        run("git", "init", "--quiet", cwd=tree)
        git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
        run(*git, "commit", "--quiet", "--allow-empty", "--message", "first", cwd=tree)
        sources = tree / ".cache/packages/sources"
        sources.mkdir(parents=True)
        for module in MODULES:
            (tree / module).mkdir()
            run("tar", "-cf", sources / f"{module}.tar.gz", module, cwd=tree)
        (tree / "build/cockpit").mkdir(parents=True)
        (tree / "build/cockpit/index.js").touch()
        (tree / ".gitignore").write_text(".cache\nbuild\n")
        (tree.parent / "bin").mkdir()
        write_program(tree.parent / "bin/xz", "exec cat")  # busybox's tar would have to be told

    @property
    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.tmp), "PATH": f"{self.tree.parent}/bin:{os.environ['PATH']}"}

    def make_root(self, script: str, builds: str) -> None:
        """Make the root that ``script`` looks for, where a build is the shell script ``builds``."""
        named = 'root trixie; echo ".cache/packages/rpm-$(echo "$packages" | sha256sum | cut -c -16)"'
        packages = run("sed", "-n", '/^packages="/,/"$/p', "packaging/rpm.sh", cwd=self.tree)
        deb, rpm = run("sh", "-ec", f". packaging/root.sh\n{packages}\n{named}", cwd=self.tree).split()
        programs = self.tree / (deb if script == "deb.sh" else rpm) / "bin"
        for directory in (programs, *(programs.parent / name for name in ("tmp", "proc", "dev", "run", "root"))):
            directory.mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "busybox", programs / "busybox")
        for name in PROGRAMS:
            (programs / name).symlink_to("busybox")
        write_program(programs / BUILDERS[script], builds)

    def start(self, script: str) -> subprocess.Popen[str]:
        command = [f"packaging/{script}", "build", *(["trixie"] if script == "deb.sh" else [])]
        return subprocess.Popen(
            command, cwd=self.tree, env=os.environ | self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for_build(self) -> None:
        for _ in range(1200):
            if [*self.tmp.rglob("started")]:
                return
            time.sleep(0.05)
        pytest.fail("the build did not begin")

    def processes(self) -> list[int]:
        """Return what still runs in this tree."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended
                if (path / "cwd").readlink().is_relative_to(self.tree.parent):
                    found.append(int(path.name))
        return found


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    (tmp_path / "tree").mkdir()
    checkout = Checkout(tmp_path / "tree")
    yield checkout
    for process in checkout.processes():  # of a test that failed
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("script", BUILDERS)
def test_a_build_that_fails_leaves_nothing_behind(checkout: Checkout, script: str) -> None:
    checkout.make_root(script, "echo no compiler; exit 7")
    build = checkout.start(script)
    said, _ = build.communicate(timeout=120)
    assert build.returncode == 1, said
    assert "no compiler" in said
    assert [*checkout.tmp.iterdir()] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("script", BUILDERS)
def test_a_build_that_is_interrupted_ends_at_once_and_leaves_nothing_behind(
    checkout: Checkout, script: str, number: int, status: int
) -> None:
    checkout.make_root(script, ENDLESS)
    build = checkout.start(script)
    checkout.wait_for_build()
    assert checkout.processes()
    if number == signal.SIGINT:
        os.killpg(build.pid, number)  # as a terminal sends it
    else:
        build.send_signal(number)
    said, _ = build.communicate(timeout=20)
    assert build.returncode == status, said
    assert [*checkout.tmp.iterdir()] == []
    assert checkout.processes() == []


def test_a_build_that_works_leaves_its_packages_and_nothing_else(checkout: Checkout) -> None:
    checkout.make_root("deb.sh", "touch ../a.deb ../a.dsc ../a.changes ../a.buildinfo ../a.debian.tar.xz")
    build = checkout.start("deb.sh")
    said, _ = build.communicate(timeout=120)
    assert build.returncode == 0, said
    assert (checkout.tree / "build/packages/trixie/a.deb").exists()
    assert [*checkout.tmp.iterdir()] == []
