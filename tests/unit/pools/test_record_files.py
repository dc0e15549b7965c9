# SPDX-License-Identifier: GPL-2.0-or-later
"""Records on disk: what earlier versions wrote, and what cannot be true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rig.pool_records import huge_record, write_record
from tests.rig.repository import REPOSITORY
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.errors import PoolError
from virt_dmem.pools import record_files, registry
from virt_dmem.pools.backends.dmemfs import DmemfsRecord
from virt_dmem.pools.backends.hugetlbfs import HugetlbfsRecord, PageCountChange
from virt_dmem.pools.record import PoolRecord

GOLDEN = sorted((REPOSITORY / "tests/unit/golden/pool-records").glob("*.json"))
"""As the version wrote them that had the fields of all backends in one record."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_a_record_of_an_earlier_version_is_read_and_written_as_it_was(config: Config, golden: Path) -> None:
    record = record_files.read(golden)
    write_record(config, record)
    written = record_files.path_of(config, record.name)
    assert json.loads(written.read_bytes()) == json.loads(golden.read_bytes())
    assert record_files.read(written) == record


def test_each_backend_has_its_own_fields_of_such_a_record() -> None:
    found = {path.stem: record_files.read(path) for path in GOLDEN}
    huge, bare, plain = found["huge"], found["bare"], found["plain"]
    assert isinstance(huge, HugetlbfsRecord)
    assert (huge.hvo, huge.switched_hvo, huge.optimized, huge.step) == (
        True,
        True,
        True,
        PageCountChange(1, 16, 32),
    )
    assert (huge.saved_bytes, huge.measured) == (1376256, False)
    assert isinstance(bare, DmemfsRecord)
    assert bare.regions_named
    assert sum(item.size for item in bare.regions[0]) == bare.got_bytes
    assert type(plain) is PoolRecord


def test_a_record_of_a_new_pool_has_the_fields_of_all_backends(config: Config) -> None:
    write_record(config, huge_record(config))
    fields = json.loads(record_files.path_of(config, "p").read_bytes())
    assert fields.keys() == json.loads(GOLDEN[0].read_bytes()).keys()


DAMAGED = (
    b"", b"{", b"{}", b'{"name": 1}', b"\xff",
    b'{"name": "q", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/q", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpgs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 0, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "m", "nodes": {"-1": {"wanted_bytes": 1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {"-1": {"wanted_bytes": -1}}}',
    b'{"name": "p", "backend": "tmpfs", "page_size": 4096, "mount": "/m/p", "nodes": {}}',
)  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_record_that_cannot_be_read_is_named_and_harms_no_other_pool(config: Config, content: bytes) -> None:
    write_record(config, huge_record(config, "good"))
    (config.pool_records_dir / "p.json").write_bytes(content)
    with pytest.raises(PoolError, match=r"p\.json"):
        registry.find(config, "p")
    assert registry.find(config, "good").name == "good"
    assert [record.name for record in registry.records(config)] == ["good"]
    assert [Path(path).name for path in registry.readable(config)[1]] == ["p.json"]
