# SPDX-License-Identifier: GPL-2.0-or-later
"""Reduce the rules of ``[[adopt]]`` to texts that the hook's shell script looks for in a domain's XML.

A mark of a rule occurs in the XML, as libvirt prints it, of every domain that the rule takes: it decides nothing,
but without one no program has to be started. It contains no blank and nothing that a shell expands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.rules import NOVA

__all__ = ["marks"]

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,-]{0,40}", re.ASCII)
"""Characters that are the same in XML, in a pattern and in a shell. The shell reads marks byte by byte."""
_LEAST = 3
"""A shorter beginning of a flavor's name occurs in any XML."""


def marks(rules: Sequence[AdoptRule]) -> list[str]:
    """Return the marks of all rules, each once; a domain without any of them is taken by no rule."""
    return [*dict.fromkeys(_mark(rule) for rule in rules)]


def _mark(rule: AdoptRule) -> str:
    """Return a text that occurs in the XML of each domain that a rule takes: of all that do, a rare one."""
    for pattern in (rule.flavor, rule.extra_spec.partition("=")[0]):
        if len(begins := _beginning(pattern)) >= _LEAST:
            return begins
    if rule.flavor or rule.extra_spec:
        return NOVA
    if begins := _beginning(rule.domain):
        return f"<name>{begins}"
    return _beginning(rule.metadata) or "<name>"


def _beginning(pattern: str) -> str:
    found = _PLAIN.match(pattern)
    return found[0] if found else ""
