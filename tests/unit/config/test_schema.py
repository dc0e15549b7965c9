# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: files, drop-ins, unknown keys, and which file an error names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from virt_dmem.cli.daemon import socket_path
from virt_dmem.cli.main import main
from virt_dmem.cli.parser import build_parser
from virt_dmem.config.schema import AdoptRule, Config, keys, load_config, load_config_and_origins
from virt_dmem.errors import ConfigError, ExitStatus


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The main file, with one drop-in beside it."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/10-site.toml").write_text("# nothing yet\n")
    main_file = tmp_path / "virt-dmem.toml"
    main_file.write_text("")
    return main_file


def drop_in(file: Path, text: str, name: str = "10-site.toml") -> Path:
    path = file.parent / "conf.d" / name
    path.write_text(text)
    return path


def test_later_files_win_key_by_key_and_each_key_knows_its_file(file: Path) -> None:
    file.write_text('default_pool = "a"\n[daemon]\ngroup = "g"\nrun_dir = "/a"\n')
    first = drop_in(file, 'daemon.run_dir = "/b"\n')
    second = drop_in(file, "[libvirt]\nauto_apply = false\n", "20.toml")
    drop_in(file, 'default_pool = "not read"', "30.toml~")
    config, origins = load_config_and_origins(file)
    assert (config.default_pool, config.daemon.group, config.daemon.run_dir) == ("a", "g", "/b")
    assert not config.libvirt.auto_apply
    assert origins == {
        "default_pool": str(file),
        "daemon.group": str(file),
        "daemon.run_dir": str(first),
        "libvirt.auto_apply": str(second),
    }


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('defaultpool = "a"', "there is no key defaultpool", "Did you mean default_pool?"),
        ('[daemon]\nrundir = "a"', "there is no key daemon.rundir", "Did you mean daemon.run_dir?"),
        ('[deamon]\nrun_dir = "a"', "there is no key deamon", "Did you mean daemon?"),
        ('state_dir = "a"', "there is no key state_dir", "Did you mean daemon.state_dir?"),
        ("colour = 1", "there is no key colour", "Known here are: default_pool, "),
        ("[libvirt]\nauto_apply = 1", "libvirt.auto_apply cannot be 1: expected `bool`, got `int`", ""),
        ('[prefault]\nthreads = "4"', "prefault.threads cannot be '4': expected `int`, got `str`", ""),
        ('daemon = "x"', "daemon cannot be 'x': expected `object`, got `str`", ""),
        ("default_pool = nothing", "line 1", ""),
        ("adopt = 1", "adopt cannot be 1: expected `array`, got `int`", ""),
        ("adopt = [1]", "adopt cannot be [1]: expected `object`, got `int`", ""),
        ('[[adopt]]\nname = "x"', "there is no key adopt.name", "Known here are: rule, metadata, domain, "),
        ('[[adopt]]\nflavour = "x"', "there is no key adopt.flavour", "Did you mean adopt.flavor?"),
        ("[[adopt]]\ndomain = 1", "adopt.domain cannot be 1: expected `str`, got `int`", ""),
        ('[[adopt]]\ndomain = "a"\nunsuitable = "x"', "adopt.unsuitable cannot be 'x'", ""),
        ('[[adopt]]\ndomain = "a"\n[[adopt]]\npool = "p"', "rule 2 of [[adopt]] has no pattern", 'domain = "*"'),
        ('[[adopt]]\ndomain = "a"\npool = "../x"', "rule 1 of [[adopt]] names pool '../x'", "letters, digits"),
        (f'[[adopt]]\ndomain = "{"a" * 300}"', "has a pattern of 300 characters in domain", "at most 256"),
        ('[[adopt]]\ndomain = "a"\n' * 101, "there are 101 rules", "at most 100"),
    ],
)
@pytest.mark.parametrize("where", ["main file", "drop-in"])
def test_what_is_not_known_is_refused_with_the_file_the_key_and_the_nearest_name(
    file: Path, where: str, text: str, message: str, hint: str
) -> None:
    guilty = file
    if where == "drop-in":
        file.write_text('default_pool = "innocent"\n')
        drop_in(file, "[daemon]\n", "99.toml")
        guilty = drop_in(file, text)
    else:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(guilty) in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_the_rules_of_all_files_are_in_force_in_the_order_of_the_files(file: Path) -> None:
    file.write_text('[[adopt]]\ndomain = "a"\n[[adopt]]\ndomain = "b"\n')
    site = drop_in(file, '[[adopt]]\nflavor = "c"\npool = "p"\nunsuitable = "refuse"\n')
    config, origins = load_config_and_origins(file)
    assert config.adopt == (
        AdoptRule(domain="a"),
        AdoptRule(domain="b"),
        AdoptRule(flavor="c", pool="p", unsuitable="refuse"),
    )
    assert origins == {"adopt": f"{file}, {site}"}


def test_a_file_that_is_no_text_is_named(file: Path) -> None:
    guilty = file.parent / "conf.d/50.toml"
    guilty.write_bytes(b'default_pool = "\xff"')
    with pytest.raises(ConfigError, match=f"{guilty} cannot be used: it is not UTF-8"):
        load_config(file)


def test_every_key_has_a_type_and_a_default_that_fits_it() -> None:
    for key, kind, default in keys():
        assert msgspec.convert(default, kind) == default, key
    assert load_config(Path(os.devnull)) == Config()


def test_config_show_prints_what_can_be_read_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = '[[adopt]]\nrule = "x \\"y\\""\ndomain = "a*"\n[[adopt]]\nflavor = "b"\n'
    file.write_text(f'default_pool = "quoted \\" ü"\n[libvirt]\nauto_apply = false\n{rules}')
    assert main(["config", "show", "--config", str(file)]) == ExitStatus.DONE
    again = file.parent / "again.toml"
    again.write_text(capsys.readouterr().out)
    assert load_config(again) == load_config(file)


def test_config_show_tells_the_origin_of_each_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = drop_in(file, "[prefault]\nthreads = 3\n")
    main(["config", "show", "--origin", "--config", str(file)])
    lines = dict(line.split(" = ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["prefault.threads"].split() == ["3", "#", str(site)]
    assert lines["daemon.group"].split() == ['"virt-dmem"', "#", "default"]
    main(["config", "show", "--json", "--config", str(file)])
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["keys"]}
    assert rows["prefault.threads"] == {"key": "prefault.threads", "value": 3, "default": 0, "origin": str(site)}
    assert rows["daemon.group"]["origin"] is None
    assert list(rows) == [key for key, _, _ in keys()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '# [daemon]\n#run_dir = "/no"\n',
        '[daemon]\nrun_dir = "/x"\n',
        'daemon = {run_dir = "/x"}\n',
        '[daemon]\n"run\\u005fdir" = "/x"\n',
        '[libvirt]\nrun_dir = "/y"\n',
        '[daemon]\ngroup = "g"\n',
    ],
)
def test_list_finds_the_same_socket_without_the_parser(file: Path, text: str) -> None:
    file.write_text(text)
    args = build_parser().parse_args(["list", "--config", str(file)])
    assert socket_path(args) == str(load_config(file).socket_path)
