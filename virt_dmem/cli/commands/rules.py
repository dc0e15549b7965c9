# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rules``: by which rule of ``[[adopt]]`` a domain is adopted, and why not by the others."""

from __future__ import annotations

import os
import sys

from virt_dmem.cli.columns import Column, text
from virt_dmem.cli.command import Command
from virt_dmem.errors import DmemError, ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Annotated, Literal

    from virt_dmem.cli.json_schema import says
    from virt_dmem.cli.output import Output
    from virt_dmem.config.schema import Config
    from virt_dmem.domain_xml.adoption.adopt import Verdict

__all__ = ["COMMANDS"]

_ABOUT = """\
The domain is looked up in libvirt; without DOMAIN its XML is read from stdin, as
'virsh dumpxml' prints it. The rules are those of the configuration file, which
virt-dmemd reads when it starts. The first rule that matches takes the domain. A
domain that asks for pool memory itself gets it from the pool that it names,
whatever the rules say."""

_RULES = (
    text("RULE", "rule"),
    text("POOL", "pool"),
    text("UNSUITABLE", "unsuitable"),
    Column("TAKES", lambda row: "yes" if row["takes"] else "no"),
    text("WHY NOT", "why_not"),
)


class Rule:
    """What one rule says about the domain."""

    rule: Annotated[str, says("its name, or its number")]
    pool: Annotated[str, says("the pool that it names; empty: the default pool")]
    unsuitable: Annotated[
        Literal["ignore", "refuse"], says("how it handles a domain whose memory cannot be served")
    ]
    takes: Annotated[bool, says("it takes the domain")]
    why_not: Annotated[str, says("why it does not; empty if it does")]


class RulesAnswer:
    """`rules`."""

    name: Annotated[str, says("name of the domain")]
    outcome: Annotated[
        Literal["adopted", "ignored", "refused", "own-request", "not-taken"],
        says(
            "`adopted`: its memory comes from the pool of the rule that takes it; `ignored`, `refused`: a rule"
            " takes it, and its memory cannot come from a pool as its XML is; `own-request`: it asks for pool"
            " memory itself; `not-taken`: no rule takes it"
        ),
    ]
    rule: Annotated[str | None, says("the rule that takes it; null: none")]
    unsuitable: Annotated[str, says("why its memory cannot come from a pool; empty: it can, or no rule takes it")]
    problem: Annotated[str, says("why it cannot start as things are; empty: nothing is known")]
    rules: list[Rule]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        default="",
        help="name, UUID or ID; without it, XML is read from stdin",
    )


def run(args: argparse.Namespace, out: Output) -> ExitStatus:
    """Print which rule takes a domain, and for each other one why it does not."""
    from virt_dmem.config.schema import load_config
    from virt_dmem.domain_xml.adoption.adopt import adopt, decide
    from virt_dmem.domain_xml.reader import DomainDocument
    from virt_dmem.domains import adoption

    config = load_config(args.config)
    document = DomainDocument(_xml(args, config))
    verdict = decide(config.adopt, document.root)
    refused = verdict.refusal()
    problem: DmemError | None = refused
    if verdict.adopted:
        try:
            memory = adopt(config.adopt, document)
            if memory is not None:
                adoption.require_servable(config, memory)
        except DmemError as error:
            problem = error
    out.text(_sentence(verdict, refused is not None))
    if problem:
        out.note(str(problem))
    rows = [
        {
            "rule": one.label,
            "pool": one.rule.pool,
            "unsuitable": one.rule.unsuitable,
            "takes": one is verdict.taken,
            "why_not": one.why_not or ("" if one is verdict.taken else "it asks for pool memory itself"),
        }
        for one in verdict.judgements
    ]
    if rows:
        out.text("")
        out.table(_RULES, rows)
    out.result(
        name=verdict.name,
        outcome=_outcome(verdict, refused is not None),
        rule=verdict.taken.label if verdict.taken else None,
        unsuitable=verdict.unsuitable,
        problem=str(problem or ""),
        rules=rows,
    )
    return ExitStatus.DONE


def _xml(args: argparse.Namespace, config: Config) -> bytes:
    from virt_dmem.domain_xml.parse import MAX_XML_BYTES
    from virt_dmem.hypervisor.connection import Hypervisor
    from virt_dmem.os_errors import naming

    if args.domain:
        with Hypervisor(args.connect or config.libvirt.uri) as hypervisor:
            return hypervisor.definition(hypervisor.find(args.domain))
    with naming(os.path.realpath("/proc/self/fd/0")):
        return sys.stdin.buffer.read(MAX_XML_BYTES + 1)


def _outcome(verdict: Verdict, refused: bool) -> str:
    if verdict.asks:
        return "own-request"
    if verdict.taken is None:
        return "not-taken"
    return ("refused" if refused else "ignored") if verdict.unsuitable else "adopted"


def _sentence(verdict: Verdict, refused: bool) -> str:
    name = verdict.name
    if verdict.asks:
        return f"{name} asks for pool memory itself: rules do not apply to it."
    if not verdict.judgements:
        return f"No rule takes {name}: the configuration has none ([[adopt]])."
    if verdict.taken is None:
        return f"No rule takes {name}."
    taken = f"Rule {verdict.taken.label} takes {name}"
    if not verdict.unsuitable:
        return f"{taken}: its memory comes from {_pool(verdict.taken.rule.pool)}."
    does = "its start is rejected" if refused else "it is left as it is"
    return f"{taken}, and {does}, because its memory cannot come from a pool: {verdict.unsuitable}."


def _pool(name: str) -> str:
    return f"pool {name}" if name else "the default pool"


COMMANDS = (
    Command(
        "rules",
        "show which rule adopts a domain, and why others do not",
        run,
        about=_ABOUT,
        arguments=add_arguments,
        answer="RulesAnswer",
    ),
)
