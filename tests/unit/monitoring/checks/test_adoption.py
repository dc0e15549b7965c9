# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that are not in force, and rules without a pool, are found."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tests.rig.checked_machine import HOOK
from virt_dmem.config.schema import AdoptRule, DaemonConfig
from virt_dmem.domains.adoption import write_marks
from virt_dmem.monitoring.checks import adoption
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status
from virt_dmem.pools.record import NodeShare, PoolRecord
from virt_dmem.pools.record_files import write
from virt_dmem.units import GIB, MIB


def test_rules_are_to_be_in_force_with_their_pools(machine: Machine) -> None:
    assert adoption.rules(machine).message == "No rule adopts domains."
    config = msgspec.structs.replace(machine.config, adopt=(AdoptRule(rule="nova", flavor="x", pool="guests"),))
    machine = replace(machine, config=config)
    found = adoption.rules(machine)
    assert (found.status, found.hint) == (
        Status.WARN,
        "Restart virt-dmemd: systemctl restart virt-dmemd.service",
    )
    write_marks(machine.own_config())
    found = adoption.rules(machine)
    assert found.status is Status.FAIL
    assert "Rule nova of [[adopt]] has no pool: There is no pool 'guests'" in found.message
    machine.own_config().pool_records_dir.mkdir(parents=True)
    write(machine.own_config(), PoolRecord("guests", "tmpfs", 2 * MIB, "/none/guests", {0: NodeShare(GIB)}))
    assert adoption.rules(machine).status is Status.PASS


def test_rules_that_the_hook_does_not_find_are_told_of(machine: Machine) -> None:
    rules = (AdoptRule(rule="nova", flavor="x"),)
    config = msgspec.structs.replace(machine.config, adopt=rules, daemon=DaemonConfig(state_dir="/srv/state"))
    machine = replace(machine, config=config)
    write_marks(machine.own_config())
    found = adoption.rules(machine)
    assert found.status is Status.FAIL
    assert "the hook looks for them in /var/lib/virt-dmem, and [daemon] state_dir is /srv/state" in found.message
    assert DaemonConfig().state_dir in HOOK.read_text()
