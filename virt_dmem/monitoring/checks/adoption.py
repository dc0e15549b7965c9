# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the rules by which domains are adopted."""

from __future__ import annotations

from virt_dmem.config.schema import DaemonConfig
from virt_dmem.domain_xml.adoption.rules import label
from virt_dmem.domains.adoption import are_marks_current
from virt_dmem.errors import PoolNotFound
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools import registry
from virt_dmem.pools.backends.checks import Result, failed, passed, warned
from virt_dmem.text import counted

__all__ = ["rules"]


def rules(machine: Machine) -> Result:
    """Check that the rules of ``[[adopt]]`` are in force, and that their pools exist."""
    config, state_dir, hooks = machine.own_config(), machine.config.daemon.state_dir, DaemonConfig().state_dir
    if config.adopt and state_dir != hooks:
        return failed(
            f"No rule adopts domains: the hook looks for them in {hooks}, and [daemon] state_dir is {state_dir}.",
            f"Set [daemon] state_dir to {hooks}, and restart virt-dmemd.",
        )
    if not are_marks_current(config):
        return warned(
            "The rules of [[adopt]] in the configuration are not those that are in force.",
            "Restart virt-dmemd: systemctl restart virt-dmemd.service",
        )
    for number, rule in enumerate(config.adopt, 1):
        try:
            registry.choose(config, rule.pool)
        except PoolNotFound as error:
            return failed(f"Rule {label(number, rule)} of [[adopt]] has no pool: {error.message}", error.hint)
    if not config.adopt:
        return passed("No rule adopts domains.")
    return passed(f"{counted(len(config.adopt), 'rule adopts domains', 'rules adopt domains')}.")
