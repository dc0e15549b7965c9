# SPDX-License-Identifier: GPL-2.0-or-later
"""Only the restore in progress is taken for it."""

from __future__ import annotations

from typing import cast

from virt_dmem.domain_xml.elements import parse_domain
from virt_dmem.domains.parked.restores import Restores
from virt_dmem.hypervisor.state_feed import StateFeed

XML = b"<domain><name>guest</name><metadata><other xmlns='urn:other'/></metadata></domain>"
FEED = cast("StateFeed", object())


def test_a_restore_is_known_by_its_number() -> None:
    restores = Restores()
    assert restores.mark("uuid", XML) == XML
    with restores.restoring("uuid", FEED):
        assert restores.feed_of("uuid") is FEED
        marked = restores.mark("uuid", XML)
        assert b"urn:other" in marked
        assert restores.is_marked("uuid", parse_domain(marked))
        assert restores.is_marked("uuid", parse_domain(restores.mark("uuid", b"<domain/>")))
        assert not restores.is_marked("uuid", parse_domain(XML))
        assert not restores.is_marked("another", parse_domain(marked))
    assert restores.feed_of("uuid") is None
    assert not restores.is_marked("uuid", parse_domain(marked)), "it is over"
    with restores.restoring("uuid", FEED):
        assert not restores.is_marked("uuid", parse_domain(marked)), "it is another one"
        assert restores.is_marked("uuid", parse_domain(restores.mark("uuid", marked)))
