# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache: the domains that it knows, and pools that change."""

from __future__ import annotations

from pathlib import Path

from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.prezero import ONE, TWO, Rig, domain


@in_own_mount_namespace
def test_when_a_domain_ran_is_remembered_while_libvirt_knows_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.prezero.set_domains([domain(ONE, 8)])
    for uuid in (ONE, TWO):
        rig.release(uuid)
    rig.prezero.update_domain(TWO, domain(TWO, 8))
    assert rig.prezero.likelihood(ONE) > rig.prezero.likelihood(TWO) == 0
    for known in (None, domain(ONE, 8)):
        rig.prezero.update_domain(ONE, known)
    assert rig.prezero.likelihood(ONE) == 0
