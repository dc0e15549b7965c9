# SPDX-License-Identifier: GPL-2.0-or-later
"""Install where there is only what 'make install' asks for: it must need nothing that only tests need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.image import PROJECT, NoPackages, pack_tree, suite, the_bare_root
from tests.lab.overlay_root import OverlayRoot
from virt_dmem import __version__

_ONLY_FOR_TESTS = ("qemu-system-x86", "qemu-utils", "libvirt-daemon", "libvirt-clients", "mmdebstrap", "strace")


@pytest.fixture(scope="module")
def host() -> Iterator[OverlayRoot]:
    try:
        root = the_bare_root(suite())
    except NoPackages as error:
        pytest.skip(str(error))
    with OverlayRoot(root) as host, tempfile.TemporaryDirectory() as name:
        pack_tree(Path(name) / "tree.tar")
        (host.directory / "tree.tar").write_bytes((Path(name) / "tree.tar").read_bytes())
        host.run(f"tar -C {PROJECT} -xf /tree.tar")
        yield host


def test_it_installs_from_a_checkout_and_the_command_works(host: OverlayRoot) -> None:
    said = host.run(f"make --silent -C {PROJECT} install")
    assert f"install: virt-dmem {__version__} is installed:" in said
    assert "install: next:" in said
    assert __version__ in host.run("virt-dmem --version")
    assert __version__ in host.run("virt-dmem-hook --version")
    assert "virt-dmem-hook" in host.run("cat /etc/libvirt/hooks/qemu.d/50-virt-dmem")


def test_no_package_came_along_that_only_tests_need(host: OverlayRoot) -> None:
    installed = host.run("dpkg-query -W -f '${Package}\\n'").split()
    assert "libvirt-dev" in installed
    assert [package for package in _ONLY_FOR_TESTS if package in installed] == []
    host.run(f"test ! -e {PROJECT}/.venv/bin/pytest && test ! -e {PROJECT}/.cache/guest")


def test_it_says_what_the_host_lacks(host: OverlayRoot) -> None:
    said = host.run("virt-dmem check || true")
    assert "libvirt" in said
    assert "Traceback" not in said


def test_it_goes_away_again(host: OverlayRoot) -> None:
    host.run(f"make --silent -C {PROJECT} uninstall")
    assert host.run("find /usr /etc -xdev -name '*virt-dmem*' -not -path '*/__pycache__/*'").split() == []
