# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels that lose optimized huge pages are told by their release."""

from __future__ import annotations

import pytest

from virt_dmem.host.hvo_bug import Verdict, verdict


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.12.113+deb13-amd64", Verdict.GOOD),
        ("6.12.114+deb13-amd64", Verdict.BAD),
        ("6.12.117+deb13-amd64", Verdict.BAD),
        ("6.12.118", Verdict.BAD),
        ("6.12.119-rt1", Verdict.SUSPECT),
        ("6.12.1170", Verdict.SUSPECT),
        ("6.12.11", Verdict.GOOD),
        ("6.12", Verdict.GOOD),
        ("6.18.50", Verdict.GOOD),
        ("6.18.51-cloud", Verdict.SUSPECT),
        ("7.3.4+deb13-amd64", Verdict.GOOD),
        ("6.1.0-28-amd64", Verdict.GOOD),
        ("5.6.12.117", Verdict.GOOD),
        ("16.12.117", Verdict.GOOD),
        ("", Verdict.GOOD),
    ],
)
def test_a_kernel_is_judged_by_its_release(release: str, expected: Verdict) -> None:
    assert verdict(release) is expected
