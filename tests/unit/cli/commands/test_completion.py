# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion, in a real bash and a real zsh."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.golden import GOLDEN
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from tests.rig.shells import BASH, ZSH, Completed, Shell, script
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

BOTH = pytest.mark.parametrize("shell", [BASH, ZSH], ids=lambda shell: shell.name)


@BOTH
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["po"], {"pool"}),
        (["unp"], {"unpark"}),
        (["pool", "cr"], {"create"}),
        (["pool", "create", "--b"], {"--backend", "--bytes"}),
        (["pool", "create", "--el"], {"--elastic"}),
        (["pool", "create", "--backend", "t"], {"tmpfs"}),
        (["completion", ""], {"bash", "zsh"}),
        (["list", "--app"], {"--applied"}),
        (["plan-host", "--gu"], {"--guest-memory"}),
        (["config", "s"], {"show"}),
        (["list", "--sort", "RES"], {"RESERVED"}),
        (["explain", "pool-no"], {"pool-not-found"}),
        (["pool", "create", "--size", "12"], {"12K", "12M", "12G", "12T"}),
        (["pool", "create", "new", "--max", "12G"], {"12G"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_shell_completes_our_words(
    capsys: pytest.CaptureFixture[str], shell: Shell, words: list[str], expected: set[str]
) -> None:
    found = shell.complete(script(shell, capsys), ["virt-dmem", *words])
    assert set(found.words) == expected
    if shell is ZSH and len(expected) == 1:  # it is inserted at once, and a comma where more may follow
        assert re.split("[ ,]$", found.line)[0] == " ".join(["virt-dmem", *words[:-1], *expected])


def test_a_shell_completes_the_last_of_several_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["virt-dmem", "pool", "list", "-o"]
    assert BASH.complete(script(BASH, capsys), [*words, "CAP"]).words == ["CAPACITY"]
    assert BASH.complete(script(BASH, capsys), [*words, "NAME,FR"]).words == ["NAME,FREE"]
    assert ZSH.complete(script(ZSH, capsys), [*words, "NAME,FR"]).line.split() == [*words, "NAME,FREE,"]


@BOTH
def test_a_shell_completes_names_of_files_where_a_file_goes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shell: Shell
) -> None:
    (tmp_path / "site.toml").touch()
    found = shell.complete(script(shell, capsys), ["virt-dmem", "list", "--config", f"{tmp_path}/si"])
    assert [Path(word).name for word in found.words] == ["site.toml"]
    if shell is ZSH:
        assert found.line.split()[-1] == f"{tmp_path}/site.toml"


@BOTH
@in_own_mount_namespace
def test_a_shell_completes_names_of_pools_and_aliases_that_the_daemon_knows(
    capsys: pytest.CaptureFixture[str], command: Command, tmp_path: Path, shell: Shell
) -> None:
    """Names of domains come from virsh, for which a fake stands in; one of them is hostile."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, does in (
        (
            "virt-dmem",
            f'exec {sys.executable} -m virt_dmem.cli.main "$@" --config {command.directory}/virt-dmem.toml',
        ),
        ("virsh", "printf '%s\\n' web1 'web 2' 'web$(touch harmed)' '-web' 'db' ''"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)

    xml = re.sub(rb"(emory unit='KiB'>)\d+", rb"\g<1>8192", (GOLDEN / "plain-in.xml").read_bytes())
    applied = apply(xml, pool="small").decode()

    completion = script(shell, capsys)

    def ask(*words: str, rounds: int = 1) -> Completed:
        return shell.complete(completion, ["virt-dmem", *words], path=programs, rounds=rounds)

    assert ask("pool", "show", "").words == [], "no daemon can be asked"
    with command.daemon():
        for name in ("small", "smart", "other"):
            command("pool", "create", name, "--size", "64M", "--backend", "tmpfs")
        assert ask("pool", "show", "sma").words == ask("apply", "x", "--pool", "sma").words == ["small", "smart"]
        with Client(command.directory / "run/sock") as daemon:
            for _ in daemon.call_more("Hook", operation="prepare", xml=applied):
                pass
            name = daemon.call("ListDomains")["domains"][0]["name"]
            assert ask("detach", name, "pc").words == ask("detach", "--json", name, "pc").words == ["pc.ram"]
            for _ in daemon.call_more("Hook", operation="release", xml=applied):
                pass
        quickest = ask("pool", "show", "oth", rounds=8)
        assert quickest.words == ["other"]
        assert quickest.cpu_seconds < 0.1
        for name in ("small", "smart", "other"):
            command("pool", "destroy", name)
    assert ask("apply", "we").words == ["web1", r"web\ 2", r"web\$\(touch\ harmed\)"]
    assert ask("apply", r"web\ ").words == [r"web\ 2"]
    assert ask("park", "").words == ["web1", r"web\ 2", r"web\$\(touch\ harmed\)", "db"]
    assert not (REPOSITORY / "harmed").exists()


def test_names_or_a_script_are_asked_for(command: Command) -> None:
    for words in ([], ["bash", "--names", "pools"]):
        assert "Name a shell" in command("completion", *words, status=ExitStatus.USAGE)
