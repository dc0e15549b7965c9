# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers, sizes and sets as libvirt reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.cpu_time import seconds
from tests.rig.numbers import NUMBERS
from virt_dmem.domain_xml.fields import read_nodeset, read_size
from virt_dmem.errors import DomainRefused


@pytest.mark.parametrize("unit", ["", "b", "KiB", "EB", "EiB"])
@pytest.mark.parametrize("number", NUMBERS)
def test_no_size_is_more_than_libvirt_takes(number: str, unit: str) -> None:
    try:
        size = read_size(number, unit)
    except DomainRefused as refusal:
        assert len(str(refusal)) < 500
    else:
        assert 0 <= size <= 2**63


@pytest.mark.parametrize(
    "nodeset", ["0-4294967295", "0-99999", "0-1," * 500_000, "0-1023," * 500_000, "^" * 100_000, "1" * 100_000]
)
def test_a_nodeset_is_read_or_refused_at_once(nodeset: str) -> None:
    def read() -> None:
        with pytest.raises(DomainRefused) as caught:
            read_nodeset(nodeset)
        assert len(str(caught.value)) < 500

    assert seconds(read) < 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1023), st.integers(0, 1023)), max_size=12))
def test_a_nodeset_is_a_set(parts: list[tuple[bool, int, int]]) -> None:
    text, nodes = [], set()
    for take, one, other in parts:
        first, last = sorted((one, other))
        if take:
            text.append(f"{first}-{last}")
            nodes |= set(range(first, last + 1))
        else:
            text.append(f"^{first}")
            nodes -= {first}
    assert read_nodeset(",".join(text)) == tuple(sorted(nodes))
