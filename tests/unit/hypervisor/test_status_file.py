# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's own record of a migration tells whether it may be by post-copy; tests/libvirt has real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.domain_documents import UUID
from virt_dmem.hypervisor.status_file import arrives_by_postcopy


def status(job: str, *, uuid: str = UUID, root: str = "domstatus") -> str:
    return f"<{root} state='paused' pid='1'>{job}<domain id='1'><uuid>{uuid}</uuid></domain></{root}>"


INCOMING = "<job type='none' async='migration in' phase='prepare' flags='{}'/>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (status(INCOMING.format("0x8001")), True),
        (status(INCOMING.format("0x1")), False),
        (status("<job type='none' async='start' flags='0x0'/>"), False),
        (status("<job type='none' async='migration out' flags='0x8001'/>"), None),
        (status(INCOMING.format("many")), None),
        (status(INCOMING.replace(" flags='{}'", "")), None),
        (status(""), None),
        (status(INCOMING.format("0x1"), uuid="another"), None),
        (status(INCOMING.format("0x1"), root="other"), None),
        ("<domstatus", None),
        ("", None),
    ],
)
def test_what_is_not_as_expected_is_not_known(tmp_path: Path, text: str, expected: bool | None) -> None:
    (tmp_path / "vm.xml").write_text(text)
    assert arrives_by_postcopy(tmp_path, "vm", UUID) is expected
    assert arrives_by_postcopy(tmp_path, "missing", UUID) is None
