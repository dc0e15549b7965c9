# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem apply`` and ``unapply``: what they reject. tests/libvirt has the rest."""

from __future__ import annotations

import pytest

from tests.rig.answers import require_documented
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


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "No domain is named"),
        (["web", "--all"], "Both one domain and several are named"),
        (["--all", "--matching", "web*"], "not allowed with"),
    ],
)
def test_either_one_domain_or_several_are_named(
    nowhere: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", "test:///default", "apply", *args, "--config", nowhere]) == ExitStatus.USAGE
    assert said in capsys.readouterr().err


def test_of_several_each_refusal_is_told_and_the_others_are_still_tried(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """libvirt's test driver has one domain, which is no domain of QEMU."""
    assert main(["-c", "test:///default", "apply", "--all", "--config", nowhere]) == ExitStatus.FAILED
    said = capsys.readouterr()
    assert said.err.startswith("virt-dmem: test: ")
    assert said.out == "1 domain: 0 rewritten, 0 unchanged, 1 refused.\n"
    assert main(["-c", "test:///default", "apply", "--matching", "t*", "--json", "--config", nowhere]) == 1
    (one,) = require_documented(["apply", "--all"], capsys.readouterr().out)["domains"]
    assert (one["name"], one["domain"], one["changed"]) == ("test", None, False)
    assert one["error"]["code"]
    assert main(["-c", "test:///default", "apply", "--matching", "no*", "--config", nowhere]) == ExitStatus.FAILED
    assert "no persistent domain whose name matches 'no*'" in capsys.readouterr().err
    assert main(["-c", "test:///default", "unapply", "--all", "--config", nowhere]) == ExitStatus.DONE
