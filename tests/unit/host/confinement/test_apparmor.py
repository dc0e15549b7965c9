# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether AppArmor's rules on disk let a QEMU reach its own domain's extents."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.host.confinement.apparmor import lets_qemu_in, rule

POOLS = "/run/virt-dmem/pools"


def with_rules(root: Path, text: str, name: str = "abstractions/libvirt-qemu") -> Path:
    file = root / "etc/apparmor.d" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return root


@pytest.mark.parametrize(
    "line",
    [
        f"{rule(POOLS)} rwk,",
        f"  owner {rule(POOLS)} rwk,",
        f'"{rule(POOLS)}" rw,',
        "/{,var/}run/virt-dmem/pools/*/libvirt-*/** rwk,",
        "@{run}/virt-dmem/** mrwk,",
        "/run/virt-dmem/pools/[a-z]*/libvirt-????????-*/ram-node[0-9] wr,",
    ],
)
def test_any_rule_that_covers_an_extent_will_do(tmp_path: Path, line: str) -> None:
    assert lets_qemu_in(POOLS, root=with_rules(tmp_path, f"  # of the administrator\n{line}\n"))


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"# {rule(POOLS)} rwk,",
        f"{rule(POOLS)} r,",
        f"deny {rule(POOLS)} rwk,",
        f"{rule('/srv/pools')} rwk,",
        "/run/virt-dmem/pools/* rwk,",
        "/run/virt-dmem/sock rw,",
        "/run/virt-dmem/pools/{* rw,",
    ],
)
def test_what_covers_none_does_not(tmp_path: Path, line: str) -> None:
    assert not lets_qemu_in(POOLS, root=with_rules(tmp_path, f"{line}\n"))


def test_includes_about_libvirt_are_followed_and_loops_end(tmp_path: Path) -> None:
    with_rules(tmp_path, "  #include <abstractions/libvirt-qemu>\n", "libvirt/TEMPLATE.qemu")
    with_rules(
        tmp_path, "  include if exists <abstractions/libvirt-qemu.d>\n include <abstractions/libvirt-qemu>\n"
    )
    assert not lets_qemu_in(POOLS, root=tmp_path)
    with_rules(tmp_path, f"{rule(POOLS)} rwk,\n", "abstractions/libvirt-qemu.d/site")
    assert lets_qemu_in(POOLS, root=tmp_path)


def test_a_host_without_rules_has_none(tmp_path: Path) -> None:
    assert not lets_qemu_in(POOLS, root=tmp_path)


def test_the_rule_that_we_install_covers_an_extent(tmp_path: Path) -> None:
    ours = (REPOSITORY / "packaging/apparmor.conf").read_text("utf-8")
    assert lets_qemu_in(POOLS, root=with_rules(tmp_path, ours))
