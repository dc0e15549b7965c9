# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide whether a domain is adopted: a rule takes it, and its memory can come from a pool as its XML is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lxml import etree

from virt_dmem.config.schema import AdoptRule
from virt_dmem.domain_xml.adoption.rules import Judgement, judge
from virt_dmem.domain_xml.elements import NOT_REWRITTEN, find_request, refuse_unsupported, what_it_lacks
from virt_dmem.domain_xml.fields import find_child, read_name
from virt_dmem.domain_xml.memory_backends import machine_without_name, memory_backends
from virt_dmem.domain_xml.reader import DomainDocument, DomainMemory
from virt_dmem.errors import AdoptionRefused, DomainRefused

__all__ = ["Verdict", "adopt", "decide", "rule_of"]


@dataclass(frozen=True)
class Verdict:
    """Say what the rules decide about one domain."""

    name: str
    asks: bool
    """It asks for pool memory itself: then no rule matters."""
    judgements: tuple[Judgement, ...]
    taken: Judgement | None
    """Of the rule that takes it."""
    unsuitable: str
    """Why its memory cannot come from a pool as its XML is, as a sentence; empty: it can."""

    @property
    def adopted(self) -> Judgement | None:
        """Of the rule from whose pool its memory comes; ``None``: it is not adopted."""
        return None if self.unsuitable else self.taken

    def refusal(self) -> AdoptionRefused | None:
        """Return the error for a domain that the rule rejects; ``None``: it may start."""
        if self.taken is None or not self.unsuitable or self.taken.rule.unsuitable != "refuse":
            return None
        return AdoptionRefused(
            f"Rule {self.taken.label} of [[adopt]] takes domain {self.name}, whose memory cannot come from a pool:"
            f" {self.unsuitable}.",
            hint="Have its XML generated with <source type='file'/> and <access mode='shared'/> in <memoryBacking>"
            ' (nova: [libvirt] file_backed_memory), or set unsuitable = "ignore" in that rule.',
        )


def decide(rules: Sequence[AdoptRule], root: etree._Element) -> Verdict:
    """Return what the rules decide about the ``<domain>`` in ``root``.

    :raise DomainXmlInvalid: When it is no XML from libvirt.
    """
    asks = find_request(root) is not None
    judgements = judge(rules, root)
    taken = None if asks else next((one for one in judgements if not one.why_not), None)
    return Verdict(read_name(root), asks, tuple(judgements), taken, _unsuitable(root) if taken else "")


def adopt(rules: Sequence[AdoptRule], document: DomainDocument) -> DomainMemory | None:
    """Return the memory of a domain that a rule takes, to come from the rule's pool; ``None``: it is not adopted.

    :raise AdoptionRefused: When its memory cannot come from a pool, and the rule rejects such domains.
    :raise DomainXmlInvalid: When it is no XML from libvirt.
    """
    if not rules:
        return None
    verdict = decide(rules, document.root)
    if refusal := verdict.refusal():
        raise refusal
    if (taken := verdict.adopted) is None:
        return None
    return replace(document.memory(), pool=taken.rule.pool, rule=taken.label)


def rule_of(rules: Sequence[AdoptRule], root: etree._Element) -> str:
    """Return the label of the rule that adopts the ``<domain>`` in ``root``; empty: it is not adopted."""
    if not rules:
        return ""
    taken = decide(rules, root).adopted
    return taken.label if taken else ""


def _unsuitable(root: etree._Element) -> str:
    try:
        refuse_unsupported(root)
        if not all(cell.alias for cell in memory_backends(root)):
            raise machine_without_name(root)
    except DomainRefused as refusal:
        return refusal.message.rstrip(".")
    lacks = what_it_lacks(root)
    return f"it is {_kind(root)}" if lacks == NOT_REWRITTEN else lacks and f"its XML {lacks}"


def _kind(root: etree._Element) -> str:
    """Return the kind of memory of a domain that has no shared files."""
    backing = find_child(root, "memoryBacking")
    if find_child(backing, "hugepages") is not None:
        return "of huge pages"
    source, access = find_child(backing, "source"), find_child(backing, "access")
    kind = "" if source is None else source.get("type", "")
    if kind == "file":
        return "a file that is not shared" if access is None or access.get("mode") != "shared" else "a file"
    return {"memfd": "a memfd"}.get(kind, "ordinary memory")
