# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge by the rules of ``[[adopt]]`` which domains they take. Pure: nothing but the XML is looked at.

Names and metadata are chosen by tenants: of each only so much is read, and patterns are those of fnmatch(3), which
Python matches without exponential backtracking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

from lxml import etree

from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.fields import find_child, read_name, text_of
from virt_dmem.text import clipped

__all__ = ["NOVA", "Judgement", "judge", "label"]

NOVA = "http://openstack.org/xmlns/libvirt/nova/"
"""What the namespaces of OpenStack's nova begin with; a version follows (nova/virt/libvirt/config.py, NOVA_NS)."""
_MOST_ELEMENTS = 256
"""Elements of metadata, and extra specs, that are looked at."""
_LONGEST = 1024
"""Characters of a namespace, name or extra spec; none that is longer matches any pattern."""
_SHOWN = 80
_SO_OLD = "nova writes them into the XML from 32.0 (2025.2) on"


@dataclass(frozen=True)
class Judgement:
    """Say whether a rule takes a domain."""

    label: str
    rule: AdoptRule
    why_not: str
    """Continues a sentence; empty: it takes it."""


def label(number: int, rule: AdoptRule) -> str:
    """Return how a rule is called in messages; ``number``: counted from 1."""
    return rule.rule or str(number)


def judge(rules: Sequence[AdoptRule], root: etree._Element) -> list[Judgement]:
    """Return the judgement of each rule about the ``<domain>`` in ``root``: the first that matches takes it.

    :raise DomainXmlInvalid: When the domain has no valid name.
    """
    found: list[Judgement] = []
    features = _Features.of(root)
    taker = ""
    for number, rule in enumerate(rules, 1):
        why_not = next(_differences(rule, features), "") or (taker and f"rule {taker} comes before it")
        found.append(Judgement(label(number, rule), rule, why_not))
        if not why_not:
            taker = found[-1].label
    return found


@dataclass(frozen=True)
class _Features:
    """What rules look at."""

    name: str
    namespaces: tuple[str, ...]
    flavor: str | None
    extra_specs: Mapping[str, str]

    @classmethod
    def of(cls, root: etree._Element) -> _Features:
        metadata = find_child(root, "metadata")
        elements = [] if metadata is None else [*islice(metadata.iterchildren("{*}*"), _MOST_ELEMENTS)]
        namespaces = dict.fromkeys(etree.QName(element).namespace or "" for element in elements)
        flavor, specs = None, dict[str, str]()
        for element in elements:
            named = etree.QName(element)
            if named.localname == "instance" and (named.namespace or "").startswith(NOVA):
                for found in islice(element.iterchildren(f"{{{named.namespace}}}flavor"), 1):
                    flavor = found.get("name", "")
                    specs = dict(islice(_extra_specs(found, str(named.namespace)), _MOST_ELEMENTS))
        return cls(read_name(root), tuple(filter(None, namespaces)), flavor, specs)


def _extra_specs(flavor: etree._Element, namespace: str) -> Iterator[tuple[str, str]]:
    for spec in flavor.iterfind(f"{{{namespace}}}extraSpecs/{{{namespace}}}extraSpec"):
        yield spec.get("name", ""), text_of(spec)


def _matches(pattern: str, text: str) -> bool:
    return len(text) <= _LONGEST and fnmatchcase(text, pattern)


def _differences(rule: AdoptRule, features: _Features) -> Iterator[str]:
    """Yield why a rule does not take a domain, to continue a sentence about it."""
    if rule.metadata and not any(_matches(rule.metadata, namespace) for namespace in features.namespaces):
        have = ", ".join(clipped(namespace, _SHOWN) for namespace in features.namespaces[:3]) or "none"
        yield f"its metadata have no element of namespace {rule.metadata!r} ({have})"
    if rule.domain and not _matches(rule.domain, features.name):
        yield f"its name {clipped(features.name, _SHOWN)!r} does not match {rule.domain!r}"
    if rule.flavor:
        if features.flavor is None:
            yield "its metadata have no flavor of nova"
        elif not _matches(rule.flavor, features.flavor):
            yield f"its flavor {clipped(features.flavor, _SHOWN)!r} does not match {rule.flavor!r}"
    if rule.extra_spec:
        key, equals, pattern = rule.extra_spec.partition("=")
        value = features.extra_specs.get(key)
        if value is None:
            yield f"its flavor has no extra spec {key!r}; {_SO_OLD}"
        elif equals and not _matches(pattern, value):
            yield f"its extra spec {key!r} is {clipped(value, _SHOWN)!r}, which does not match {pattern!r}"
