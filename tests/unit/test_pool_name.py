# SPDX-License-Identifier: GPL-2.0-or-later
"""One limit for the names of pools, wherever they are given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rig.pool_records import huge_record, write_record
from tests.rig.repository import REPOSITORY
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.pool_name import POOL_NAME, POOL_NAME_LIMIT
from virt_dmem.pools import registry


@pytest.mark.parametrize("length", [1, 32, 33, POOL_NAME_LIMIT])
def test_a_record_may_have_any_name_that_the_domain_xml_may_have(tmp_path: Path, length: int) -> None:
    config = Config(daemon=DaemonConfig(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))
    name = "x" * length
    for segment in (name, f"{name}+1"):
        write_record(config, huge_record(config, segment))
    assert POOL_NAME.fullmatch(name)
    assert [record.name for record in registry.segments(config, name)] == [name, f"{name}+1"]


def test_a_longer_name_is_none() -> None:
    assert not POOL_NAME.fullmatch("x" * (POOL_NAME_LIMIT + 1))


def test_the_schema_of_the_domain_xml_has_the_same_rule() -> None:
    (schema,) = REPOSITORY.glob("docs/**/dmem-1.0.rng")
    pattern = POOL_NAME.pattern.replace("_.-", r"_.\-")
    assert re.search(re.escape(pattern), schema.read_text())
