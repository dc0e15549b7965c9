# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the module of every command, and import one only when its command is used (decision 0007)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from virt_dmem.cli.command import Command

__all__ = ["MODULES", "GROUPS", "load", "module_of", "named"]

MODULES = {
    "status": "status",
    "check": "check",
    "plan-host": "plan_host",
    "savings": "pool.savings",
    "pool create": "pool.create",
    "pool resize": "pool.resize",
    "pool destroy": "pool.destroy",
    "pool list": "pool.list",
    "pool show": "pool.show",
    "pool mount": "pool.mount",
    "pool drain": "pool.drain",
    "apply": "apply",
    "unapply": "apply",
    "rewrite": "rewrite",
    "rules": "rules",
    "list": "list",
    "show": "show",
    "reconcile": "reconcile",
    "attach": "hotplug",
    "detach": "hotplug",
    "resize": "hotplug",
    "park": "park",
    "unpark": "park",
    "refresh": "park",
    "alerts": "alerts",
    "events": "events",
    "metrics": "metrics",
    "pause-apply": "pause_apply",
    "report": "report",
    "config show": "config",
    "completion": "completion",
    "explain": "explain",
}
"""Module below ``cli.commands`` by command, in the order of ``--help``. Its ``COMMANDS`` hold the command."""

GROUPS = {
    "pool": "create, resize, show and destroy pools",
    "config": "show the effective configuration",
}
"""Summary of each word that has commands of its own."""


def named(arguments: Sequence[str]) -> Sequence[str]:
    """Return the command that a command line begins with, alone; all commands where that is none of them.

    ``--version`` needs none.
    """
    if [*arguments[:1]] == ["--version"]:
        return []
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if name in MODULES:
            return [name]
    return list(MODULES)


def load(name: str) -> Command:
    """Import and return the command ``name``."""
    commands: tuple[Command, ...] = module_of(name).COMMANDS
    return next(command for command in commands if command.name == name)


def module_of(name: str) -> ModuleType:
    """Import and return the module of the command ``name``."""
    return __import__(f"virt_dmem.cli.commands.{MODULES[name]}", fromlist=["COMMANDS"])
