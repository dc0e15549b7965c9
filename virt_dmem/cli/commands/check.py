# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``: verify installation and host setup."""

from __future__ import annotations

from virt_dmem.cli.command import Command
from virt_dmem.cli.terminal.screen import Screen, add_color
from virt_dmem.errors import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated

    from virt_dmem.cli.json_schema import CheckResult, says
    from virt_dmem.cli.output import Output
    from virt_dmem.pools.backends.checks import Result

__all__ = ["COMMANDS"]

_ABOUT = """\
Checks kernel, pools, daemon, hook, libvirt and AppArmor. It prints a line for
each check that passed, as soon as it has, and then what did not, with a hint on
how to fix it. Checks that did not pass for one cause share a line. At the end is
a summary.

  PASS  it is as it should be
  WARN  it works with a limitation, or could not be determined, by this user for
        example
  FAIL  domains with pool memory do not start, or not as they are configured;
        those that run are not affected

What others changed on the host and what is wrong with single domains is in
'virt-dmem alerts' as well. The exit status is 3 if a check failed."""


class CheckAnswer:
    """`check`; the exit status is 3 if a check failed."""

    checks: Annotated[list[CheckResult], says("in their order; with --failed those that failed")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--failed", action="store_true", help="show only what failed, and the summary")
    add_color(parser)


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Run all checks, print those that pass as soon as they do, and then what is wrong."""
    from virt_dmem.cli import check_results as results
    from virt_dmem.config.schema import load_config
    from virt_dmem.monitoring.checks.base import Machine
    from virt_dmem.monitoring.checks.suite import run as run_checks
    from virt_dmem.pools.backends.checks import Status

    config, screen = load_config(args.config), Screen(args.color)
    found: list[tuple[str, Result]] = []
    for item, result in run_checks(Machine(config, args.connect or config.libvirt.uri)):
        found.append((item.name, result))
        if result.status is Status.PASS and not args.failed:
            out.painted("".join(f"{line}\n" for line in results.passed(item.name, result, screen)))
            out.flush()
    for problem in results.problems(found):
        if problem.status is Status.FAIL or not args.failed:
            out.painted("".join(f"{line}\n" for line in results.lines(problem, screen)))
    out.text(f"\n{results.summary(found)}")
    failed = [(name, result) for name, result in found if result.status is Status.FAIL]
    out.result(checks=results.rows(failed if args.failed else found))
    return ExitStatus.CHECK_FAILED if failed else ExitStatus.DONE


COMMANDS = (
    Command(
        "check",
        "verify installation and host setup",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="CheckAnswer",
    ),
)
