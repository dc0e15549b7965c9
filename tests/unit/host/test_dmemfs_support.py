# SPDX-License-Identifier: GPL-2.0-or-later
"""Where dmemfs cannot be used, and that virt-dmem and its module give the same reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.fake_arm64 import fake_arm64
from tests.rig.fake_tree import fake_tree, put
from tests.rig.repository import REPOSITORY
from virt_dmem.host.dmemfs_support import REFUSAL, refused_by, unsupported

MODULE = (REPOSITORY / "kernel/support.c").read_text()
CPU = (
    "KVM needs FEAT_S2FWB and CTR_EL0.DIC for memory without struct pages, and a CPU of this host lacks one of them"
)
BOOTING = "Booting Linux on physical CPU 0x0000000000 [0x000f0510]"
FWB, DIC = "Stage-2 Force Write-Back", "Instruction cache invalidation not required for I/D coherence"


@pytest.mark.parametrize(
    ("release", "base_page", "reason"),
    [
        ("6.1.0-49-arm64", 4096, "stop at their first instruction"),
        ("6.12.117+deb13-arm64", 4096, "stop at their first instruction"),
        ("6.16.12", 4096, "stop at their first instruction"),
        ("6.17.0", 4096, "QEMU would abort"),
        ("7.2.6+deb14-arm64", 4096, "QEMU would abort"),
        ("7.3.4+deb13-arm64", 4096, ""),
        ("7.10.0", 4096, ""),
        ("8.0.0", 4096, ""),
        ("7.3.4+deb13-arm64-16k", 16384, "pages of 4 KiB"),
        ("7.3.4.aarch64+64k", 65536, "pages of 4 KiB"),
        ("unknown", 4096, "stop at their first instruction"),
    ],
)
def test_a_kernel_of_arm64_is_refused_in_the_modules_words(
    tmp_path: Path, release: str, base_page: int, reason: str
) -> None:
    found = unsupported(base_page=base_page, root=fake_arm64(tmp_path, release=release))
    assert (reason in found) if reason else not found
    assert found in MODULE


def test_what_the_cpu_lacks_is_known_once_the_module_said_so(tmp_path: Path) -> None:
    root = fake_arm64(tmp_path)
    put(root / "dev/kmsg", f"3,1,5,-;{REFUSAL}{CPU}\n6,2,6,-;other: {CPU}\n")
    assert unsupported(root=root) == CPU
    assert CPU in MODULE
    assert REFUSAL in (REPOSITORY / "kernel/options.c").read_text()


@pytest.mark.parametrize(
    ("log", "lacks"),
    [
        ([BOOTING, "GIC system register CPU interface", FWB, DIC], False),
        ([BOOTING, "GIC system register CPU interface", FWB], True),
        ([BOOTING, "GIC system register CPU interface"], True),
        (["CRC32 instructions"], False),  # the log has lost its beginning
        ([BOOTING], False),
    ],
)
def test_what_the_cpu_lacks_is_known_from_a_whole_log(tmp_path: Path, log: list[str], lacks: bool) -> None:
    root = fake_arm64(tmp_path)
    lines = [line if line == BOOTING else f"CPU features: detected: {line}" for line in log]
    put(root / "dev/kmsg", "".join(f"6,{at},0,-;{line}\n" for at, line in enumerate(lines)))
    assert unsupported(root=root) == (CPU if lacks else "")


def test_x86_is_supported_whatever_its_kernel_and_others_are_not(tmp_path: Path) -> None:
    root = fake_tree(tmp_path)
    put(root / "proc/sys/kernel/osrelease", "6.1.0\n")
    assert unsupported(root=root) == ""
    put(root / "proc/sys/kernel/arch", "riscv64\n")
    assert unsupported(root=root) in MODULE.replace("#error ", "")


def test_the_last_reason_counts() -> None:
    assert refused_by([REFUSAL + "a", "dmemfs: other", REFUSAL + "b"]) == "b"
    assert refused_by(["dmemfs: other"]) == ""
