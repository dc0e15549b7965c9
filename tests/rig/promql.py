# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what an expression of Prometheus asks for: metrics, the labels that it matches, those that it groups by.

Not a whole parser: it knows the tokens, and that a name before braces, an operator or the end is a metric.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

__all__ = ["Asked", "Matcher", "asked"]

_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:[^"\\]|\\.)*") | (?P<range>\[(?:\$__rate_interval|\d+[smhdw])\])
    | (?P<number>\d+(?:\.\d+)?) | (?P<name>[a-zA-Z_:][\w:]*) | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/<>=(){},]) )""",
    re.VERBOSE,
)
_FUNCTIONS = {"count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time"}
"""Those that are used; whoever needs another adds it."""
_GROUPING = {"by", "without", "on", "ignoring"}
_OPERATORS = {"and", "or", "unless"}


@dataclasses.dataclass(frozen=True)
class Matcher:
    """One of the conditions in braces."""

    label: str
    operator: str
    value: str


@dataclasses.dataclass
class Asked:
    """What an expression asks for."""

    metrics: dict[str, list[Matcher]] = dataclasses.field(default_factory=dict)
    grouped: list[set[str]] = dataclasses.field(default_factory=list)
    """The labels of each ``by (...)``, from left to right."""


def asked(expression: str) -> Asked:
    """Read an expression.

    :raise ValueError: When it has a token, function or parenthesis that does not belong there.
    """
    tokens = list(_tokens(expression))
    found = Asked()
    brackets: list[str] = []
    at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        follows = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "name" and text in _GROUPING:
            labels, at = _until(tokens, at + 2, ")")
            if any(kind != "name" and text != "," for kind, text in labels):
                raise ValueError(f"Labels are not understood: {expression}")
            found.grouped.append({name for kind, name in labels if kind == "name"})
        elif (kind == "name" and follows == "(") or (text in _FUNCTIONS and follows in _GROUPING):
            if text not in _FUNCTIONS:
                raise ValueError(f"{text} is no known function: {expression}")
        elif kind == "name" and text not in _OPERATORS:
            matchers, at = _until(tokens, at + 2, "}") if follows == "{" else ([], at)
            found.metrics.setdefault(text, []).extend(_matchers(matchers, expression))
        elif text == "(":
            brackets.append(text)
        elif text == ")":
            if not brackets:
                raise ValueError(f"A parenthesis too many: {expression}")
            brackets.pop()
        at += 1
    if brackets:
        raise ValueError(f"A parenthesis is missing: {expression}")
    return found


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(expression.rstrip()):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"{expression[at:]} is not understood")
        kind = str(match.lastgroup)
        yield kind, match[kind]
        at = match.end()


def _until(tokens: list[tuple[str, str]], at: int, end: str) -> tuple[list[tuple[str, str]], int]:
    """Return the tokens from ``at`` up to ``end``, and the place of that."""
    for there in range(at, len(tokens)):
        if tokens[there][1] == end:
            return tokens[at:there], there
    raise ValueError(f"{end} is missing")


def _matchers(tokens: list[tuple[str, str]], expression: str) -> Iterator[Matcher]:
    for start in range(0, len(tokens), 4):
        if [kind for kind, _ in tokens[start : start + 3]] != ["name", "sign", "string"]:
            raise ValueError(f"What is in braces is not understood: {expression}")
        label, operator, value = (text for _, text in tokens[start : start + 3])
        yield Matcher(label, operator, value[1:-1])
