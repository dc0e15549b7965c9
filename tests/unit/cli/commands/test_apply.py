# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem apply`` and ``unapply``: what they reject. tests/libvirt has the rest."""

from __future__ import annotations

import pytest

from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus


def test_a_libvirt_that_does_not_answer_is_named(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "qemu+unix:///system?socket=/nonexistent/sock"
    assert main(["apply", "guest", "-c", uri, "--config", nowhere]) == ExitStatus.FAILED
    assert f"libvirt does not answer at {uri}" in capsys.readouterr().err


def test_a_domain_that_libvirt_does_not_know_is_named(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "test:///default", "unapply", "ghost", "--config", nowhere]) == ExitStatus.FAILED
    assert "'ghost'" in capsys.readouterr().err


def test_a_domain_of_another_hypervisor_is_refused(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "test:///default", "apply", "test", "--config", nowhere]) == ExitStatus.FAILED
    assert "'test'" in capsys.readouterr().err
