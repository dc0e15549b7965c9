# SPDX-License-Identifier: GPL-2.0-or-later
"""XML from another host, adapted to this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.domain_documents import domain
from tests.unit.domains.conftest import GIB, config_in, write_record
from virt_dmem.domain_xml.reader import is_managed, read_domain
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.domains.migration import adapt, adapt_persistent
from virt_dmem.errors import DomainRefused, PoolNotFound

HOST_DEVICE = (
    "<devices><hostdev mode='subsystem' type='pci'><source>"
    "<address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source></hostdev></devices>"
)
INCOMING = apply(domain(), pool="there")


def test_a_domain_without_a_request_stays_as_it_is(tmp_path: Path) -> None:
    assert adapt(config_in(tmp_path), domain()) == domain()


def test_a_pool_of_this_host_is_kept_and_another_replaced_by_the_default(tmp_path: Path) -> None:
    config = config_in(tmp_path, incoming="default-pool")
    write_record(config, "here", "hugetlbfs")
    assert read_domain(adapt(config, INCOMING)).pool == "here"
    write_record(config, "there", "hugetlbfs")
    assert adapt(config, INCOMING) == INCOMING


@pytest.mark.parametrize("incoming", ["refuse", "default-pool"])
def test_without_a_pool_it_is_refused(tmp_path: Path, incoming: str) -> None:
    with pytest.raises(PoolNotFound):
        adapt(config_in(tmp_path, incoming=incoming), INCOMING)


def test_without_a_fitting_pool_it_has_ordinary_memory_where_that_is_allowed(tmp_path: Path) -> None:
    config = config_in(tmp_path, incoming="ordinary")
    ordinary = adapt(config, INCOMING)
    assert not is_managed(ordinary)
    assert b"<source type='file'/>" in ordinary or b'<source type="file"/>' in ordinary, "its kind stays"
    write_record(config, "there", "hugetlbfs", page_size=4 * GIB)
    assert adapt(config, INCOMING) == ordinary


def test_a_domain_with_a_host_device_does_not_come_to_memory_without_struct_pages(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path, incoming="refuse")
    write_record(config, "dm", "dmemfs")
    with pytest.raises(DomainRefused, match="is passed through by VFIO"):
        adapt(config, apply(domain(HOST_DEVICE), pool="dm"))


def test_persistent_xml_is_adapted_to_the_running_domain(tmp_path: Path) -> None:
    config = config_in(tmp_path, incoming="default-pool")
    write_record(config, "here", "hugetlbfs")
    assert read_domain(adapt_persistent(config, INCOMING, apply(domain(), pool="here"))).pool == "here"
    assert not is_managed(adapt_persistent(config, INCOMING, domain())), "it runs on ordinary memory"
    assert adapt_persistent(config, INCOMING, INCOMING) == INCOMING, "nor does that pool exist here"
    assert adapt_persistent(config, domain(), INCOMING) == domain()
