# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion, in a real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from virt_dmem.cli.main import main
from virt_dmem.errors import ExitStatus

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


def test_what_zsh_reads_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests do not install zsh: only the text is checked."""
    assert main(["completion", "zsh"]) == ExitStatus.DONE
    said = capsys.readouterr().out
    assert said.startswith("#compdef virt-dmem\n")
    assert "create:" in said
