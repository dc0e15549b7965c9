# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify the properties of ``rewrite`` for any domain XML."""

from __future__ import annotations

import contextlib
import re

from lxml import etree

from tests.rig.golden import canonical
from virt_dmem.domain_xml.reader import is_managed, read_domain
from virt_dmem.domain_xml.rewrite import apply, reprint, unapply
from virt_dmem.errors import DmemError, DomainRefused

__all__ = ["Failure", "examine"]

# The documented errors of apply; anything else is a failure.
REFUSALS = {
    "no QEMU domain": r"The domain is of type ",
    "protected memory": r"The domain has encrypted or protected memory ",
    "private cell": r"Cell \S+ of the domain has private memory ",
    "several requests": r"The domain XML has \d+ elements 'memory', and may have one",
    "unknown element": r"The domain's request for pool memory has the element <x>, which ",
}


class Failure(Exception):
    """A property does not hold; the first line says which."""


def _c14n(xml: bytes) -> bytes:
    try:
        return canonical(xml)
    except etree.C14NError:  # relative namespace URIs have no canonical form; C14N 2.0 does not mind them
        parsed = etree.fromstring(xml).getroottree()
        return etree.canonicalize(etree.tostring(parsed, encoding="unicode"), with_comments=True).encode()


def _require(holds: object, what: str) -> None:
    if not holds:
        raise Failure(what)


def examine(xml: bytes, schema: etree.RelaxNG | None) -> str:
    """Return the outcome for ``xml`` in a few words. Without ``schema`` nothing is validated.

    :raise Failure: When a property does not hold.
    """
    try:
        root = etree.fromstring(xml)
    except etree.XMLSyntaxError as error:
        return f"not well-formed: {error.msg}"
    if schema and not schema.validate(root):
        return "not valid for libxml2"
    try:
        once = apply(xml, pool="big")
    except DomainRefused as refusal:
        for name, pattern in REFUSALS.items():
            if re.match(pattern, refusal.message):
                _require(refusal.hint, f"no hint: {refusal.message}")
                return f"refused: {name}"
        raise Failure(f"refused: {refusal.message}") from refusal
    except Exception as error:
        raise Failure(f"apply crashed: {error!r}") from error
    try:
        _hold(xml, once, schema)
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"crashed: {error!r}") from error
    return "rewritten"


def _hold(xml: bytes, once: bytes, schema: etree.RelaxNG | None) -> None:
    output = etree.fromstring(once)
    if schema:
        _require(schema.validate(output), f"the output is not valid: {schema.error_log.last_error}")
    _require(apply(once) == once, "applying twice is not applying once")
    _require(apply(once, pool="big") == once, "applying twice with a pool is not applying once")
    _require(output.xpath("memoryBacking/source/@type") == ["file"], "the source is not a file")
    _require(output.xpath("memoryBacking/access/@mode") == ["shared"], "the access is not shared")
    _require(output.xpath("memoryBacking/allocation/@mode") == ["ondemand"], "the allocation is not on demand")
    _require(not output.xpath("memoryBacking/hugepages"), "there are hugepages")
    other = apply(once, pool="other")
    undone = unapply(once)
    _require(_c14n(undone) == _c14n(xml), "undone it is not the input")
    _require(not schema or undone == reprint(xml), "undone it is not the input as we print it")
    _require(_c14n(unapply(other)) == _c14n(xml), "undone it is not the input, after another pool")
    without = unapply(once, keep_request=False)
    _require(not is_managed(without), "our request is left")
    _require(not schema or schema.validate(etree.fromstring(without)), "without the request it is not valid")
    _require(unapply(undone) == undone, "undoing twice is not undoing once")
    with contextlib.suppress(DmemError):  # it knows less machines, and wants what libvirt fills in
        _require(read_domain(once).applied, "read_domain does not see that it is applied")
