# SPDX-License-Identifier: GPL-2.0-or-later
"""Tenants choose names: a domain looked up by its UUID is never another one named like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.rig.test_driver import THEIRS, domain_named_as_a_uuid
from virt_dmem.errors import HypervisorError
from virt_dmem.hypervisor.connection import Hypervisor


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor("test:///default") as found, domain_named_as_a_uuid(found):
        yield found


def test_by_its_uuid_no_domain_is_found_that_is_only_named_so(hypervisor: Hypervisor) -> None:
    by_key: list[Callable[[], object]] = [
        lambda: hypervisor.inactive_xml(THEIRS),
        lambda: hypervisor.is_active(THEIRS),
        lambda: hypervisor.is_persistent(THEIRS),
        lambda: hypervisor.redefine(THEIRS, lambda now: now),
        lambda: hypervisor.attach(THEIRS, "<memory/>", persistent=False),
        lambda: hypervisor.detach(THEIRS, "dimm0", persistent=False),
        lambda: hypervisor.update(THEIRS, "<memory/>"),
    ]
    for ask in by_key:
        with pytest.raises(HypervisorError, match="has no domain"):
            ask()
    assert hypervisor.info(THEIRS) is None
    assert hypervisor.live_xml(THEIRS) is None
