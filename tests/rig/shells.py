# SPDX-License-Identifier: GPL-2.0-or-later
"""Complete a line in a real bash and in a real, interactive zsh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import main

__all__ = ["BASH", "ZSH", "Completed", "Shell", "script"]

_BASH = r"""
source "$1"; shift
complete -p virt-dmem >/dev/null || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p virt-dmem | sed 's/.*-F \([^ ]*\) .*/\1/')
for ((round = 0; round < ROUNDS; round++)); do
  times
  "$function"
  for word in "${COMPREPLY[@]}"; do printf 'WORD<%s>\n' "$word"; done
  times
done
"""
_ZSH_SETTINGS = r"""
stty columns 1000
unset zle_bracketed_paste
autoload -Uz compinit
compinit -u -D
compadd() {
  # zsh's own, and says what it is given
  [[ " $* " == *\ -[OAD]\ * ]] && { builtin compadd "$@"; return }
  local -a found
  builtin compadd -A found "$@"
  (( $#found )) && print -rl -- "WORD<"$^found">"
  builtin compadd "$@"
}
ask() { times; zle the-completion; print -r -- "LINE<$BUFFER>"; times; print 'THE''END' }
zle -C the-completion complete-word _main_complete
zle -N ask
bindkey '^I' ask
"""
_ZSH = r"""
zmodload zsh/zpty
zpty shell "PS1= zsh -f -i"
zpty -w shell "fpath=(${(q)1} \$fpath); source ${(q)1}/settings; print READY''NOW"
zpty -r shell out '*READYNOW*'
for ((round = 0; round < ROUNDS; round++)); do
  zpty -w -n shell "$2"$'\t'
  zpty -r shell out '*THEEND*'
  print -r -- "$out"
  zpty -w -n shell $'\C-u'
done
zpty -d shell
"""
_TIMES = re.compile(r"(\d+)m([\d.]+)s")


@dataclass(frozen=True)
class Completed:
    """What a shell found."""

    words: list[str]
    """What it offers, as it would insert it."""
    line: str
    """The line as it is then; of zsh only."""
    cpu_seconds: float
    """For how long it and its commands were busy, in the shortest round; in hundredths in zsh."""


@dataclass(frozen=True)
class Shell:
    """A shell; ``name`` is that of its program and of its script."""

    name: str

    def complete(
        self, script: str, words: Sequence[str], *, path: Path | None = None, rounds: int = 1
    ) -> Completed:
        """Complete the last of the words of a command line, which begins with ``virt-dmem``.

        :param script: What ``virt-dmem completion`` prints for this shell.
        :param path: A directory with programs that it finds first.
        :param rounds: How often; the first loads the functions.
        """
        if shutil.which(self.name) is None:
            pytest.skip(f"needs {self.name} ('make setup' installs it)")
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "_virt-dmem").write_text(script)
            (directory / "settings").write_text(_ZSH_SETTINGS)
            asks = (_BASH if self.name == "bash" else _ZSH).replace("ROUNDS", str(rounds))
            command = ["bash", "--norc", "-c", asks, "bash", str(directory / "_virt-dmem"), *words]
            if self.name == "zsh":
                command = ["zsh", "-f", "-c", asks, "zsh", name, " ".join(words)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=300,
                env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"} if path else None,
            )  # fmt: skip
        return _read(done.stdout, rounds)


BASH, ZSH = Shell("bash"), Shell("zsh")


def _read(said: str, rounds: int) -> Completed:
    """Read what the shell's commands printed in all rounds; the words are those of the last one."""
    busy = [60 * int(minutes) + float(seconds) for minutes, seconds in _TIMES.findall(said)]
    assert len(busy) == 8 * rounds, said  # before and after: user and system, of the shell and of its commands
    each = [sum(busy[at + 4 : at + 8]) - sum(busy[at : at + 4]) for at in range(0, len(busy), 8)]
    words = re.findall(r"WORD<(.*?)>\s*$", said, re.MULTILINE)
    lines = re.findall(r"LINE<(.*?)>\s*$", said, re.MULTILINE)
    return Completed(words[len(words) - len(words) // rounds :], lines[-1] if lines else "", min(each))


def script(shell: Shell, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what ``virt-dmem completion`` prints for a shell."""
    assert main(["completion", shell.name]) == 0
    return capsys.readouterr().out
