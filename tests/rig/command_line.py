# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the ``virt-dmem`` command under a configuration of its own, without libvirt."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rig.answers import require_documented
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import main
from virt_dmem.errors import DaemonUnreachable, DmemError, ExitStatus
from virt_dmem.ipc.client import Client

__all__ = ["HOSTILE", "Command", "error_codes", "on_a_terminal", "run"]


HOSTILE = "\x9b2J\u202egnp\u2066\u200f\u061c\u2028\u200b\x7f\x1b]0;"
"""Controls in one byte and in two, overrides of direction, separators of lines, characters of no width."""


def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "virt_dmem.cli.main", *args]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=REPOSITORY, check=False, timeout=300)


def on_a_terminal(*args: str, stdin: bytes = b"") -> bytes:
    """Run the command on a terminal; return what it writes there, on stdout and stderr."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "virt_dmem.cli.main", *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=REPOSITORY) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        heard = b""
        try:
            while chunk := os.read(ours, 65536):
                heard += chunk
        except OSError:  # the command ended
            pass
    os.close(ours)
    return heard


def error_codes() -> list[str]:
    """Return the codes of all errors."""

    def tree(root: type[DmemError]) -> list[str]:
        return [root.code, *(code for child in root.__subclasses__() for code in tree(child))]

    return sorted(set(tree(DmemError)))


class Command:
    """The command under one configuration."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        self._config = directory / "virt-dmem.toml"
        self._config.write_text(
            f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            '[libvirt]\nuri = "test:///default"\n'
        )

    def __call__(self, *args: str, status: int = ExitStatus.DONE) -> str:
        """Run it in this process; return its stdout, or its stderr where it is expected to fail."""
        found = main([*args, "--config", str(self._config)])
        said = self._capsys.readouterr()
        assert found == status, said
        return said.err if status else said.out

    def json(self, *args: str) -> Any:
        """Run it with ``--json``; return the documented answer without its ``schema``."""
        answer = require_documented([*args, "--json"], self(*args, "--json"))
        assert answer.pop("schema") == 1
        return answer

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run virt-dmemd meanwhile."""
        arguments = [sys.executable, "-m", "virt_dmem.daemon.main", "--config", str(self._config)]
        log = self.directory / "log"
        with log.open("wb") as file, subprocess.Popen(arguments, cwd=REPOSITORY, stderr=file) as process:
            try:
                self._wait(process, log)
                yield
            finally:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    pytest.fail(f"virt-dmemd did not end: {log.read_text()}")

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        for _ in range(2400):
            try:
                with Client(self.directory / "run/sock") as client:
                    client.call("ListPools")
                    return
            except DaemonUnreachable:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        pytest.fail(f"virt-dmemd did not come up: {log.read_text()}")
