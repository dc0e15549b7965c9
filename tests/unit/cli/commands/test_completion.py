# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion, in a real shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.golden import GOLDEN
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import main
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

_ASK = """
source "$1"; shift
complete -p virt-dmem >/dev/null || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p virt-dmem | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What bash reads."""
    assert main(["completion", "bash"]) == ExitStatus.DONE
    path = tmp_path / "virt-dmem"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["po"], {"pool"}),
        (["pool", "cr"], {"create"}),
        (["pool", "create", "--b"], {"--backend", "--bytes"}),
        (["pool", "create", "--backend", "t"], {"tmpfs"}),
        (["completion", ""], {"bash", "zsh"}),
        (["list", "--app"], {"--applied"}),
        (["plan-host", "--gu"], {"--guest-memory"}),
        (["config", "s"], {"show"}),
        (["pool", "list", "-o", "CAP"], {"CAPACITY"}),
        (["pool", "list", "-o", "NAME,FR"], {"NAME,FREE"}),
        (["list", "--sort", "RES"], {"RESERVED"}),
        (["explain", "pool-no"], {"pool-not-found"}),
        (["pool", "create", "--size", "12"], {"12K", "12M", "12G", "12T"}),
        (["pool", "create", "--size", "12G"], {"12G"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes_our_words(script: Path, words: list[str], expected: set[str]) -> None:
    command = ["bash", "--norc", "-c", _ASK, "bash", str(script), "virt-dmem", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_bash_completes_names_of_files_where_a_file_goes(script: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").touch()
    words = ["virt-dmem", "list", "--config", f"{tmp_path}/si"]
    command = ["bash", "--norc", "-c", _ASK, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{tmp_path}/site.toml"]


@in_own_mount_namespace
def test_bash_completes_names_of_pools_and_aliases_that_the_daemon_knows(
    script: Path, command: Command, tmp_path: Path
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

    def ask(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", _ASK, "bash", str(script), "virt-dmem", *words],
            capture_output=True, text=True, check=True, cwd=REPOSITORY,
            env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        )  # fmt: skip
        return done.stdout.splitlines()

    assert ask("pool", "show", "") == [""], "no daemon can be asked"
    with command.daemon():
        for name in ("small", "smart", "other"):
            command("pool", "create", name, "--size", "64M", "--backend", "tmpfs")
        assert ask("pool", "show", "sma") == ask("apply", "x", "--pool", "sma") == ["small", "smart"]
        with Client(command.directory / "run/sock") as daemon:
            for _ in daemon.call_more("Hook", operation="prepare", xml=applied):
                pass
            name = daemon.call("ListDomains")["domains"][0]["name"]
            assert ask("detach", name, "pc") == ["pc.ram"]
            for _ in daemon.call_more("Hook", operation="release", xml=applied):
                pass
        for name in ("small", "smart", "other"):
            command("pool", "destroy", name)
    assert ask("apply", "we") == ["web1", r"web\ 2", r"web\$\(touch\ harmed\)"]
    assert ask("apply", r"web\ ") == [r"web\ 2"]
    assert ask("show", "") == ["web1", r"web\ 2", r"web\$\(touch\ harmed\)", "db"]
    assert not (REPOSITORY / "harmed").exists()


def test_names_or_a_script_are_asked_for(command: Command) -> None:
    for words in ([], ["bash", "--names", "pools"]):
        assert "Name a shell" in command("completion", *words, status=ExitStatus.USAGE)


def test_what_zsh_reads_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests do not install zsh: only the text is checked."""
    assert main(["completion", "zsh"]) == ExitStatus.DONE
    said = capsys.readouterr().out
    assert said.startswith("#compdef virt-dmem\n")
    assert "create:" in said
