# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``: verify installation and host setup."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from virt_dmem.cli.json_schema import CheckResult
    from virt_dmem.cli.output import Output
    from virt_dmem.pools.backends.checks import Result

__all__ = ["COMMANDS"]

_ABOUT = """\
Checks kernel, pools, daemon, hook, libvirt and AppArmor, and prints a line for
each check, with its name and beginning with

  PASS  it is as it should be
  WARN  it works with a limitation, or could not be determined, by this user for
        example
  FAIL  domains with pool memory do not start, or not as they are configured;
        those that run are not affected

A hint on how to fix it follows. What others changed on the host and what is
wrong with single domains is in 'virt-dmem alerts' as well. The exit status is 3
if a check failed."""


class CheckAnswer:
    """`check`; the exit status is 3 if a check failed."""

    checks: list[CheckResult]


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Run all checks, and print each result with its hint as soon as it is known."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.monitoring.checks.base import Machine
    from virt_dmem.monitoring.checks.suite import run as run_checks
    from virt_dmem.pools.backends.checks import Status

    config = load_config(args.config)
    found: list[tuple[str, Result]] = []
    for item, result in run_checks(Machine(config, args.connect or config.libvirt.uri)):
        found.append((item.name, result))
        out.text(f"{result.status.value}  {item.name}: {result.message}")
        if result.hint:
            out.text(f"      {result.hint}")
    out.result(
        checks=[
            {"name": name, "status": result.status.value, "message": result.message, "hint": result.hint}
            for name, result in found
        ]
    )
    failed = any(result.status is Status.FAIL for _, result in found)
    return ExitStatus.CHECK_FAILED if failed else ExitStatus.DONE


COMMANDS = (Command("check", "verify installation and host setup", run, about=_ABOUT, answer="CheckAnswer"),)
