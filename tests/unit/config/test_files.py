# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration files are read in order, for a single key as for the whole schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from virt_dmem.config.files import mentions, read_files
from virt_dmem.errors import ConfigError


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    path = tmp_path / "virt-dmem.toml"
    path.write_text('# run_dir = "/old"\ndefault_pool = "guests"\n')
    return path


def test_drop_ins_follow_the_file_in_order_of_their_names(main: Path) -> None:
    for name in ("20-b.toml", "10-a.toml", "README"):
        (main.parent / "conf.d" / name).write_text(f'default_pool = "{name}"\n')
    read = [(Path(file).name, content["default_pool"]) for file, content in read_files(main)]
    assert read == [("virt-dmem.toml", "guests"), ("10-a.toml", "10-a.toml"), ("20-b.toml", "20-b.toml")]


def test_a_key_is_mentioned_unless_only_in_a_comment(main: Path) -> None:
    assert mentions("default_pool", main)
    assert not mentions("run_dir", main)
    (main.parent / "conf.d/a.toml").write_text('[daemon]\n"run\\u005fdir" = "/elsewhere"\n')
    assert mentions("run_dir", main), "TOML may escape any letter of a key"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"x = ", "Invalid value"), (b"x = '\xff'", "not UTF-8 .byte 5")], ids=["TOML", "UTF-8"]
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(main: Path, content: bytes, reason: str) -> None:
    (main.parent / "conf.d/bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.toml cannot be used: .*{reason}"):
        list(read_files(main))


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no configuration file"):
        list(read_files(tmp_path / "missing.toml"))
