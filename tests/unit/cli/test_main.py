# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as such: failures, signals, streams, what is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.rig.command_line import HOSTILE, on_a_terminal
from tests.rig.golden import GOLDEN
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.main import LIST_JSON_PARSED, main
from virt_dmem.cli.parser import build_parser
from virt_dmem.errors import ExitStatus


def test_a_failure_is_what_happened_and_below_it_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nonsense"]) == ExitStatus.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("virt-dmem: There is no code 'nonsense'.\n  The codes are: ")
    assert "memory-pinned" in said.err, "the codes of alerts as well"
    assert said.err.endswith(" [usage]\n"), "its own code"


@pytest.mark.parametrize("args", [["--json", "explain", "nonsense"], ["explain", "nonsense", "--json"]])
def test_with_json_a_failure_is_an_object_too(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == ExitStatus.USAGE
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["schema"] == 1
    assert answer["error"]["code"] == "usage"
    assert answer["error"]["message"] == "There is no code 'nonsense'."
    assert answer["error"]["hint"] in said.err


@pytest.mark.parametrize(
    "args", [["list"], ["show", "guest"], ["reconcile"], ["reconcile", "--dry-run", "--json"]], ids=" ".join
)
def test_without_a_daemon_what_needs_it_ends_with_status_4(
    nowhere: str, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "--config", nowhere]) == ExitStatus.DAEMON_UNREACHABLE
    assert "virt-dmemd does not answer" in capsys.readouterr().err


def test_a_configuration_file_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--config", "/nonexistent.toml"]) == ExitStatus.FAILED
    assert "/nonexistent.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        (["--version"], {"lxml", "libvirt", "rich", "msgspec"}),
        (["explain", "pool"], {"lxml", "libvirt", "rich", "msgspec"}),
        (["list"], {"lxml", "libvirt", "rich"}),
        (["pool", "list"], {"lxml", "libvirt", "rich"}),
        (["rewrite"], {"libvirt", "rich", "asyncio", "socket"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_needs(args: list[str], absent: set[str], nowhere: str) -> None:
    script = f"""
import sys
from virt_dmem.cli.main import LIST_JSON_PARSED, main
try:
    main({[*args, "--config", nowhere]!r})
except SystemExit:
    pass
print(sorted({absent!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=(GOLDEN / "compact-in.xml").read_bytes(),
        capture_output=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stderr.decode().splitlines()[-1] == "[]"


def test_list_as_monitoring_asks_it_needs_next_to_nothing() -> None:
    """It imports few modules beyond those of a bare interpreter, and only of the standard library."""
    script = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from virt_dmem.cli.main import main
main(["list", "--json"])
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "virt_dmem" in loaded
    assert not loaded & {"argparse", "typing", "dataclasses", "inspect", "pathlib", "tomllib", "msgspec", "lxml"}


@pytest.mark.parametrize("args", [["list", "--json"], ["--json", "list"]], ids=" ".join)
def test_what_is_taken_for_parsed_is_what_the_parser_makes_of_it(args: list[str]) -> None:
    assert vars(build_parser().parse_args(args)) == LIST_JSON_PARSED


@pytest.mark.parametrize(
    "args",
    [["rewrite"], ["rewrite", "--print-diff"], ["rewrite", "--json"], ["explain", HOSTILE], [f"--{HOSTILE}"]],
    ids=["xml", "diff", "json", "error", "usage"],
)
def test_nothing_that_others_chose_controls_the_terminal(args: list[str]) -> None:
    xml = (GOLDEN / "compact-in.xml").read_text()
    named = xml.replace("<name>", f"<name>{''.join(c for c in HOSTILE if c not in chr(0x1B))}", 1)
    said = on_a_terminal(*args, stdin=named.encode()).decode()
    assert [c for c in said if not c.isprintable() and c not in "\r\n\t"] == []


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [sys.executable, "-m", "virt_dmem.cli.main", "explain", "pool"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("shell", "status", "complaint"),
    [
        ("$0 -m virt_dmem.cli.main explain pool >/dev/full", 1, "No space left on device: /dev/full."),
        ("$0 -m virt_dmem.cli.main explain pool >/dev/full", 1, "Free space there"),
        ("$0 -m virt_dmem.cli.main explain pool >&-", 0, ""),
        ("$0 -m virt_dmem.cli.main rewrite <&-", 1, "empty"),
        ("$0 -m virt_dmem.cli.main rewrite </proc/self/mem", 1, "Input/output error: /proc/"),
        ("$0 -m virt_dmem.cli.main explain nonsense 2>&-", 2, ""),
    ],
)
def test_streams_that_fail_or_are_closed_make_no_traceback(shell: str, status: int, complaint: str) -> None:
    command = ["sh", "-c", shell, sys.executable]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=REPOSITORY, check=False)
    assert done.returncode == status
    assert complaint in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_ctrl_c_ends_it_quietly_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert main(["rewrite"]) == 130
    os.close(writing)
    assert capsys.readouterr().err == ""
