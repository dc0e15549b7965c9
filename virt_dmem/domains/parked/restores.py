# SPDX-License-Identifier: GPL-2.0-or-later
"""Know a restore of ours from any other start of a parked domain, by a number in its XML that nobody else has.

A start that began anew while the memory is kept would overwrite it, and libvirt tells its hooks nothing else of
what a start is for. The hook's ``restore`` puts the number into the metadata; it is removed when the domain runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from lxml import etree

from virt_dmem.domain_xml.elements import parse_domain
from virt_dmem.hypervisor.state_feed import StateFeed

__all__ = ["NAMESPACE", "Restores"]

NAMESPACE = "https://virt-dmem.dev/xmlns/restore/1.0"
_ELEMENT = f"{{{NAMESPACE}}}restore"


class Restores:
    """The restores in progress."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        self._feeds: dict[str, StateFeed] = {}

    @contextmanager
    def restoring(self, uuid: str, feed: StateFeed) -> Iterator[None]:
        """Accept, in this context, a start of the domain from this feed."""
        self._numbers[uuid], self._feeds[uuid] = secrets.token_hex(16), feed
        try:
            yield
        finally:
            del self._numbers[uuid], self._feeds[uuid]

    def feed_of(self, uuid: str) -> StateFeed | None:
        """Return the feed that a domain is restored from."""
        return self._feeds.get(uuid)

    def mark(self, uuid: str, xml: bytes) -> bytes:
        """Return the XML of a restore with its number, if it is one in progress."""
        if uuid not in self._numbers:
            return xml
        root = parse_domain(xml)
        metadata = root.find("metadata")
        if metadata is None:
            metadata = etree.SubElement(root, "metadata")
        for old in metadata.findall(_ELEMENT):
            metadata.remove(old)
        number = etree.SubElement(metadata, _ELEMENT, nsmap={"restore": NAMESPACE})
        number.set("number", self._numbers[uuid])
        return etree.tostring(root)

    def is_marked(self, uuid: str, root: etree._Element) -> bool:
        """Return whether a starting domain is the restore in progress."""
        found = root.find(f"metadata/{_ELEMENT}")
        return found is not None and uuid in self._numbers and found.get("number") == self._numbers[uuid]
