# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as such: words, failures, signals, what is imported; and the filter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from tests.unit.conftest import GOLDEN, canonical
from virt_dmem.cli.main import LIST_JSON_PARSED, main
from virt_dmem.cli.output import Output, masked
from virt_dmem.cli.parser import build_parser
from virt_dmem.cli.progress import progress
from virt_dmem.errors import DmemError, ExitStatus
from virt_dmem.text import printable


def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "virt_dmem.cli.main", *args]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=REPOSITORY, check=False, timeout=300)


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A configuration under which no daemon runs and no pool exists."""
    file = tmp_path / "virt-dmem.toml"
    file.write_text(f'[daemon]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n')
    return str(file)


def codes() -> list[str]:
    def tree(root: type[DmemError]) -> list[str]:
        return [root.code, *(code for child in root.__subclasses__() for code in tree(child))]

    return sorted(set(tree(DmemError)))


@pytest.mark.parametrize("code", codes())
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == ExitStatus.DONE
    assert len(capsys.readouterr().out) > 30


def test_a_failure_is_what_happened_and_below_it_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nonsense"]) == ExitStatus.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("virt-dmem: There is no code 'nonsense'.\n  The codes are: ")
    assert "memory-pinned" in said.err, "those of alerts as well"


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
    ("args", "complaint"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["pool"], "VERB"),
        (["pool", "create"], "NAME"),
        (["pool", "create", "p"], "How large the pool is to be is missing"),
        (["pool", "create", "p", "--size", "much"], "'much' is not a size"),
        (["pool", "create", "p", "--size", "0"], "'0' is not a size"),
        (["pool", "create", "p", "--node", "0"], "'0' is no share of a node"),
        (["pool", "create", "p", "--node", "0=1G", "--node", "0=1G"], "named twice"),
        (["pool", "create", "p", "--size", "1G", "--node", "0=2G"], "--size is 1 GiB, and the nodes make 2 GiB"),
        (["pool", "create", "p", "--size", "1G", "--backend", "floppy"], "invalid choice"),
        (["pool", "list", "--output", "NAME,COLOUR"], "There is no column 'COLOUR'"),
        (["apply", "d", "--print-diff", "--print-xml"], "not allowed with"),
        (["list", "--app"], "Unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_sentence_and_status_2(
    nowhere: str, args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", nowhere, *args]) == ExitStatus.USAGE
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.err.startswith("virt-dmem: ")
    assert len(said.err.splitlines()) == 2


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


def test_a_libvirt_that_does_not_answer_is_named(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "qemu+unix:///system?socket=/nonexistent/sock"
    assert main(["apply", "guest", "-c", uri, "--config", nowhere]) == ExitStatus.FAILED
    assert f"libvirt does not answer at {uri}" in capsys.readouterr().err


def test_a_domain_that_libvirt_does_not_know_is_named(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "test:///default", "unapply", "ghost", "--config", nowhere]) == ExitStatus.FAILED
    assert "'ghost'" in capsys.readouterr().err


def test_a_domain_of_another_hypervisor_is_refused(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "test:///default", "apply", "test", "--config", nowhere]) == ExitStatus.FAILED
    assert "'test'" in capsys.readouterr().err


def test_nothing_applied_is_an_empty_list(nowhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "list", "--applied", "-c", "test:///default", "--config", nowhere]) == ExitStatus.DONE
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "domains": []}


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
    """The whole list of what it imports beyond a bare interpreter is short, and of the standard library alone."""
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


def test_the_filter_rewrites_and_gives_back() -> None:
    before = (GOLDEN / "compact-in.xml").read_bytes()
    there = run("rewrite", stdin=before)
    assert (there.returncode, there.stderr) == (0, b"")
    assert b"dmem:memory" in there.stdout
    back = run("rewrite", "--undo", stdin=there.stdout)
    assert canonical(back.stdout) == canonical(before)


@pytest.mark.parametrize("undo", [[], ["--undo"]], ids=["apply", "undo"])
@pytest.mark.parametrize("xml", [b"", b"<domain", b"hello", b"<network/>", b"\xff\xfe\x00"])
def test_what_the_filter_refuses_leaves_nothing_on_stdout(undo: list[str], xml: bytes) -> None:
    done = run("rewrite", *undo, stdin=xml)
    assert done.returncode == ExitStatus.FAILED
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_the_filter_keeps_a_password_that_its_diff_does_not_show() -> None:
    graphics = b"<devices><graphics type='vnc'\n  passwd = 'hunter2'/></devices></domain>"
    xml = (GOLDEN / "compact-in.xml").read_bytes().replace(b"</domain>", graphics)
    assert b"hunter2" in run("rewrite", stdin=xml).stdout
    shown = run("rewrite", "--print-diff", stdin=xml)
    assert b"+" in shown.stdout
    assert b"hunter2" not in shown.stdout
    assert b"hunter2" not in run("rewrite", "--print-diff", "--json", stdin=xml).stdout


def test_passwords_are_masked_whatever_quotes_they_are_in() -> None:
    xml = b"""<graphics passwd="it's" passwdValidTo="2026"/><graphics passwd='say "it"' connected='keep'/>"""
    shown = masked(xml)
    assert "it" not in shown
    assert "passwdValidTo" in shown
    assert "connected='keep'" in shown


def test_a_name_cannot_drive_the_terminal() -> None:
    assert printable("plain ünï") == "plain ünï"
    assert printable("\x1b[2J\x9b1m\u202eevil\n") == r"\x1b[2J\x9b1m\u202eevil\n"


HOSTILE = "\x9b2J\u202egnp\u2066\u200f\u061c\u2028\u200b\x7f\x1b]0;"
"""Controls in one byte and in two, overrides of direction, separators of lines, what has no width."""


def on_a_terminal(*args: str, stdin: bytes = b"") -> bytes:
    """What the command writes to a terminal, on stdout and stderr."""
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
        except OSError:  # it is gone
            pass
    os.close(ours)
    return heard


@pytest.mark.parametrize(
    "args",
    [["rewrite"], ["rewrite", "--print-diff"], ["rewrite", "--json"], ["explain", HOSTILE], [f"--{HOSTILE}"]],
    ids=["xml", "diff", "json", "error", "usage"],
)
def test_nothing_that_others_chose_is_obeyed_by_the_terminal(args: list[str]) -> None:
    xml = (GOLDEN / "compact-in.xml").read_text()
    named = xml.replace("<name>", f"<name>{''.join(c for c in HOSTILE if c not in chr(0x1B))}", 1)
    said = on_a_terminal(*args, stdin=named.encode()).decode()
    assert [c for c in said if not c.isprintable() and c not in "\r\n\t"] == []


def test_for_another_program_the_filter_s_xml_and_json_are_exact() -> None:
    xml = (GOLDEN / "compact-in.xml").read_text()
    name = "a\x9bb\u202ec"
    named = xml.replace("<name>", f"<name>{name}", 1).encode()
    assert f"<name>{name}".encode() in run("rewrite", stdin=named).stdout
    answer = run("rewrite", "--json", stdin=named).stdout
    assert answer.isascii()
    assert f"<name>{name}" in json.loads(answer)["xml"]


def test_progress_cannot_drive_the_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("rich.progress.Progress.update", lambda *_, description, **__: shown.append(description))
    with progress(Output(as_json=False)) as report:
        report(f"attaching {HOSTILE}", 1, 2)
    assert shown[0].isprintable()


def test_of_a_document_that_an_error_repeats_no_more_is_told_than_can_be_read() -> None:
    error = DmemError("x" * 5_000_000, hint="y" * 5_000_000)
    assert len(str(error)) < 10_000
    assert error.message.startswith("xxx")


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
        ("$0 -m virt_dmem.cli.main explain pool >/dev/full", 1, "No space left on device"),
        ("$0 -m virt_dmem.cli.main explain pool >&-", 0, ""),
        ("$0 -m virt_dmem.cli.main rewrite <&-", 1, "empty"),
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


def test_records_that_are_hidden_from_the_caller_are_no_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own directory is hidden as a whole
        Path(directory).chmod(0o755)
        records = Path(directory) / "state/pools"
        records.mkdir(parents=True)
        config = Path(directory) / "virt-dmem.toml"
        config.write_text(f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n')
        main(["savings", "--config", str(config)])  # imports what it needs while it may
        records.chmod(0)
        capsys.readouterr()
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            for args in (["savings"], ["pool", "list"]):
                assert main([*args, "--config", str(config)]) == ExitStatus.FAILED
                assert "Permission denied" in capsys.readouterr().err
            for args in (["create", "p", "--size", "1G"], ["destroy", "p"], ["mount", "p"]):
                assert main(["pool", *args, "--config", str(config)]) == ExitStatus.FAILED
                assert "needs root" in capsys.readouterr().err
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            records.chmod(0o700)


def test_a_large_answer_is_printed_like_a_small_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"name": f'"gäst{n}"\n', "size": n, "since": n / 3, "extents": [{"nodes": [0, n]}, {}], "steps": []}
        for n in range(3)
    ]
    printed = []
    for largest in (1 << 30, 0):
        monkeypatch.setattr("virt_dmem.cli.output._LARGE", largest)
        Output(as_json=True).result(domains=rows, missing=None, all=True)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert json.loads(printed[1])["domains"] == rows
