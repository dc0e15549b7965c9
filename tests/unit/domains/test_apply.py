# SPDX-License-Identifier: GPL-2.0-or-later
"""The choice of the pool, and its checks, when a domain is rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from tests.rig.domain_documents import APPLIED, domain, metadata
from tests.rig.elastic_records import elastic_record
from tests.unit.domains.conftest import GIB, config_in, write_record
from virt_dmem.allocation.remembered import Remembered
from virt_dmem.config.schema import Config
from virt_dmem.domain_xml import rewrite
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.domain_xml.traces import request_in
from virt_dmem.domains.apply import (
    ApplyOptions,
    Fitting,
    XmlChange,
    apply,
    apply_if_requested,
    apply_offline,
    doubt,
    never_fits,
    recovered,
)
from virt_dmem.errors import DomainRefused, NotEnoughMemory, PoolError, PoolNotFound
from virt_dmem.host import kernel, numa
from virt_dmem.pools import record_files, registry

LOCKED = "<memoryBacking><locked/></memoryBacking>"
DIRECT_DISK = (
    "<devices><disk type='file' device='disk'><driver name='qemu' cache='none'/><source file='/x'/>"
    "<target dev='vda'/></disk></devices>"
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A host with a pool of huge pages of 1 GiB, one of tmpfs, and one without struct pages."""
    config = config_in(tmp_path)
    write_record(config, "hp", "hugetlbfs", page_size=GIB)
    write_record(config, "t", "tmpfs", page_size=4096)
    write_record(config, "dm", "dmemfs")
    return config


def test_the_pool_is_that_of_the_options_else_that_of_the_request(config: Config) -> None:
    requested = domain(metadata(" pool='t'"))
    assert read_domain(apply(config, requested)).pool == "t"
    assert read_domain(apply(config, requested, ApplyOptions(pool="hp"))).pool == "hp"
    with pytest.raises(PoolNotFound):
        apply(config, domain())
    with pytest.raises(PoolNotFound, match="'x'"):
        apply(config, requested, ApplyOptions(pool="x"))


def test_the_refusal_names_the_pool_that_was_chosen(config: Config) -> None:
    with pytest.raises(DomainRefused, match="pool 'dm'"):
        apply(config, domain(LOCKED + metadata(" pool='dm'")))
    with pytest.raises(DomainRefused, match="not a multiple of the page size 1024 MiB"):
        apply(config, domain(memory="<memory unit='MiB'>1025</memory>"), ApplyOptions(pool="hp"))


def test_the_monitor_is_that_of_the_configuration_unless_it_is_not_wanted(tmp_path: Path) -> None:
    config = config_in(tmp_path, monitor=True)
    write_record(config, "hp", "hugetlbfs")
    xml = domain()
    assert XmlChange(xml, apply(config, xml)).adds_monitor
    without = XmlChange(xml, apply(config, xml, ApplyOptions(no_monitor=True)))
    assert (without.is_any, without.adds_monitor) == (True, False)


def test_only_a_domain_that_asks_for_it_and_is_not_rewritten_is_applied_without_being_told(config: Config) -> None:
    for xml in (domain(), domain(APPLIED + metadata(" pool='t'"))):
        assert apply_if_requested(config, xml) == xml
    assert read_domain(apply_if_requested(config, domain(metadata(" pool='t'")))).applied


def test_the_filter_checks_the_pools_whose_records_it_can_read(config: Config) -> None:
    xml = domain(LOCKED + DIRECT_DISK)
    with pytest.raises(DomainRefused, match="'dm'"):
        apply_offline(config, xml, ApplyOptions(pool="dm"))
    rewritten, unchecked = apply_offline(config, xml, ApplyOptions(pool="hp"))
    assert (read_domain(rewritten).pool, unchecked) == ("hp", "")
    rewritten, unchecked = apply_offline(config, xml, ApplyOptions(pool="elsewhere"))
    assert read_domain(rewritten).pool == "elsewhere"
    assert unchecked.startswith("its memory is locked; disk vda has cache='none'")


def test_offline_a_record_that_cannot_be_read_is_no_reason(config: Config) -> None:
    (config.pool_records_dir / "hp.json").write_text("damaged")
    with pytest.raises(DomainRefused, match="type 'lxc'"):
        apply_offline(config, domain(head="type='lxc'"), ApplyOptions(pool="hp"))
    rewritten, unchecked = apply_offline(config, domain(DIRECT_DISK), ApplyOptions(pool="hp"))
    assert read_domain(rewritten).pool == "hp"
    assert "direct I/O" in unchecked


def test_what_another_tool_removed_is_put_back_as_far_as_it_is_remembered(config: Config) -> None:
    options = ApplyOptions(pool="t", no_monitor=True)
    before = domain("<memoryBacking><hugepages/></memoryBacking>")
    applied = apply(config, before, options)
    assert recovered(config, applied) == applied
    start, end = applied.index(b"<metadata"), applied.index(b"</metadata>") + len(b"</metadata>")
    lost = applied[:start] + applied[end:]
    assert recovered(config, lost) == lost, "it may be another's: it has no monitor"
    Remembered(config.daemon.state_dir).keep(read_domain(before).uuid, request_in(etree.fromstring(applied)))
    assert read_domain(recovered(config, lost)).applied
    monitored = rewrite.apply(before, monitor=True)
    start, end = monitored.index(b"<metadata"), monitored.index(b"</metadata>") + len(b"</metadata>")
    assert b"<hugepages" in rewrite.unapply(
        recovered(config, monitored[:start] + monitored[end:]), keep_request=False
    )


def test_a_request_that_replaced_ours_gets_what_is_remembered_else_the_rewrite_is_cleaned(config: Config) -> None:
    before = domain("<memoryBacking><hugepages/></memoryBacking>")
    applied = rewrite.apply(before, pool="hp", monitor=True)
    start, end = applied.index(b"<metadata"), applied.index(b"</metadata>") + len(b"</metadata>")
    lost = applied[:start] + metadata(" pool='t'").encode() + applied[end:]
    cleaned = recovered(config, lost)
    assert b"ondemand" not in cleaned and b"id=virt-dmem" not in cleaned
    assert read_domain(cleaned).pool == "t"
    Remembered(config.daemon.state_dir).keep(read_domain(before).uuid, request_in(etree.fromstring(applied)))
    found = recovered(config, lost)
    assert (read_domain(found).applied, read_domain(found).pool) == (True, "t")
    assert b"<hugepages" in rewrite.unapply(found, keep_request=False)
    own = domain(metadata(" pool='t'") + "<memoryBacking><source type='file'/><access mode='shared'/>"
                 "<allocation mode='ondemand'/></memoryBacking>")  # fmt: skip
    Remembered(config.daemon.state_dir).forget(read_domain(before).uuid)
    assert recovered(config, own) == own, "it may be another's: it has no monitor"


def test_a_doubt_about_guests_in_guests_is_said_where_the_pool_and_the_host_give_reason(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested, plain = domain("<cpu mode='host-passthrough'/>"), domain()
    on = {pool: apply(config, nested, ApplyOptions(pool=pool)) for pool in ("dm", "hp")}
    monkeypatch.setattr(kernel, "nested_guests_need_struct_pages", lambda: True)
    assert "kvm.allow_unsafe_mappings=1" in doubt(config, on["dm"])
    assert doubt(config, on["hp"]) == ""
    assert doubt(config, apply(config, plain, ApplyOptions(pool="dm"))) == ""
    monkeypatch.setattr(kernel, "nested_guests_need_struct_pages", lambda: False)
    assert doubt(config, on["dm"]) == ""


def test_a_domain_that_does_not_even_fit_its_empty_pool_is_told_of(config: Config) -> None:
    """The pools of the fixture have 1 GiB each."""
    fits = apply(config, domain(memory="<memory unit='GiB'>1</memory>"), ApplyOptions(pool="hp"))
    assert never_fits(config, fits) == ""
    larger = apply(config, domain(memory="<memory unit='GiB'>2</memory>"), ApplyOptions(pool="hp"))
    assert "does not fit pool hp even if that is empty" in never_fits(config, larger)
    assert "asks pool 'hp' for 2 GiB, and 1 GiB is free" in never_fits(config, larger)
    with pytest.raises(NotEnoughMemory, match="Domain 'vm' cannot start as it is: it does not fit pool hp"):
        Fitting(config).require(read_domain(larger))


def test_a_domain_fits_an_elastic_pool_that_may_become_large_enough(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's nodes are fakes, of 3 GiB each; the pool has nothing yet, and may have 4 GiB of them."""
    memory = kernel.Memory(3 * GIB, 0, 0)
    monkeypatch.setattr(numa, "nodes", lambda: [numa.Node(at, (), memory) for at in (0, 1)])
    record_files.write(config, elastic_record(config, "el", {0: 0, 1: 0}))

    def judged(gib: int) -> str:
        xml = domain(memory=f"<memory unit='GiB'>{gib}</memory>")
        return never_fits(config, apply(config, xml, ApplyOptions(pool="el")))

    assert judged(4) == ""
    assert "does not fit pool el even if that is empty" in judged(5)
    assert "asks for 5 GiB, and the elastic pool may have 4 GiB at most" in judged(5)
    on_one = domain(
        "<numatune><memory mode='strict' nodeset='1'/></numatune>", memory="<memory unit='GiB'>4</memory>"
    )
    assert "on node 1 (strict)" in never_fits(config, apply(config, on_one, ApplyOptions(pool="el")))


@pytest.mark.parametrize("state", ["creating", "mounting", "destroying"])
def test_a_domain_cannot_start_on_a_pool_that_is_not_set_up(config: Config, state: str) -> None:
    applied = apply(config, domain(), ApplyOptions(pool="t"))
    record = registry.find(config, "t")
    record.state = state  # type: ignore[assignment]
    record_files.write(config, record)
    verb = "destroy" if state == "destroying" else "mount"
    with pytest.raises(PoolError, match=f"Pool t is {state}: it gives no memory") as raised:
        Fitting(config).require(read_domain(applied))
    assert f"virt-dmem pool {verb} t" in raised.value.hint
    assert f"Domain 'vm' cannot start now: Pool t is {state}" in never_fits(config, applied)
