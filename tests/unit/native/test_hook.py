# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook does no harm: to domains without pool memory, to running guests, to libvirtd that waits for it.

The daemon here is a stand-in that plays the other end of the socket badly; with the real one the hook is
tested in tests/libvirt.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.private_libvirt import HOOK, write_hook
from virt_dmem import __version__
from virt_dmem.native.build import build

MIB = 1 << 20
BUILDS = {
    "plain": ["-Werror"],
    "sanitized": ["-Werror", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
NOT_OURS = b"<domain><name>other</name></domain>"
MANAGED = (
    b"<domain><metadata><dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata></domain>"
)
OPERATIONS = [
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "reconnect",
    "attach",
    "migrate",
    "restore",
    "new",
]
OF_A_START = ["prepare", "start", "started", "migrate", "restore"]
"""A start, and an incoming domain: these fail closed."""


class StandIn:
    """A daemon's stand-in that answers one call at a time with the given pieces, and then closes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "sock"
        self.calls: list[dict[str, Any]] = []
        self._threads: list[threading.Thread] = []

    def __call__(self, pieces: Iterable[bytes], *, pause: float = 0.0, stay: bool = False) -> Path:
        """Wait for a call; ``pause`` before each piece, and ``stay`` until the caller has gone."""
        self.path.unlink(missing_ok=True)  # of one that was served before
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        listener.settimeout(300)

        def serve() -> None:
            with listener, listener.accept()[0] as caller, suppress(ConnectionError):
                call = b""
                while not call.endswith(b"\0"):
                    call += caller.recv(MIB)
                self.calls.append(json.loads(call[:-1]))
                for piece in pieces:
                    time.sleep(pause)
                    caller.sendall(piece)
                if stay:
                    caller.recv(1)

        self._threads.append(threading.Thread(target=serve))
        self._threads[-1].start()
        return self.path

    def close(self) -> None:
        for thread in self._threads:
            thread.join()


class Hook:
    """The hook as it is installed, with one build of what it runs."""

    def __init__(self, directory: Path, flags: Iterable[str] = ()) -> None:
        directory.chmod(0o755)  # also for users that are not root
        self.client = build("virt-dmem-hook", directory / "virt-dmem-hook", flags=flags)
        self.script = write_hook(directory / "hook", client=self.client)

    def __call__(
        self, operation: str, xml: bytes, path: Path | str = "/nonexistent", *, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run([self.script, "guest", operation, "begin", "-"], xml, path, user)

    def ask(self, operation: str, xml: bytes, path: Path | str) -> subprocess.CompletedProcess[str]:
        """Without the shell half."""
        return run([self.client, operation, str(os.getpid())], xml, path)


def run(
    command: list[Path | str], xml: bytes, path: Path | str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "VIRT_DMEM_SOCKET": str(path)}
    done = subprocess.run(
        command, input=xml, env=environment, capture_output=True, timeout=300, check=False, user=user
    )
    stderr = done.stderr.decode()
    assert "Sanitizer" not in stderr, stderr
    assert "runtime error" not in stderr, stderr
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), stderr)


@pytest.fixture(scope="module", params=BUILDS)
def hook(request: pytest.FixtureRequest) -> Iterator[Hook]:
    with tempfile.TemporaryDirectory(prefix="virt-dmem-test-") as directory:
        yield Hook(Path(directory), BUILDS[request.param])


@pytest.fixture(params=["missing", "not executable", "no program", "failing", "crashing"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A hook whose program is broken."""
    client = tmp_path / "client"
    if request.param != "missing":
        client.write_text({"failing": "#!/bin/sh\nexit 3\n", "crashing": "#!/bin/sh\nkill -SEGV $$\n"}.get(
            request.param, "\x7fELF"
        ))  # fmt: skip
        client.chmod(0o644 if request.param == "not executable" else 0o755)
    return write_hook(tmp_path / "hook", client=client)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    serve = StandIn(tmp_path)
    yield serve
    serve.close()


def message(*, continues: bool = False, **reply: object) -> bytes:
    whole = {"done": not continues, "message": "", "done_bytes": 0, "total_bytes": 0, "links": []} | reply
    return json.dumps({"parameters": {"reply": whole}, "continues": continues}).encode() + b"\0"


def refusal(**parameters: object) -> bytes:
    return json.dumps({"error": "dev.virt-dmem.Failed", "parameters": parameters}).encode() + b"\0"


def pieces(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def assert_fails_in_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("virt-dmem: ")
    assert done.stderr.count("\n") == 1
    assert not [sign for sign in done.stderr[:-1] if unicodedata.category(sign) == "Cc"]


# the shell half


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_domain_that_is_not_ours_passes_even_where_what_it_runs_is_broken(broken: Path, operation: str) -> None:
    done = run([broken, "guest", operation, "begin", "-"], NOT_OURS, "/nonexistent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in OF_A_START])
def test_operations_that_may_not_fail_do_not_fail_for_our_domains_either(broken: Path, operation: str) -> None:
    assert run([broken, "guest", operation, "begin", "-"], MANAGED, "/nonexistent").returncode == 0


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in OF_A_START])
def test_nor_do_they_where_there_is_no_daemon(hook: Hook, operation: str) -> None:
    assert hook(operation, MANAGED).returncode == 0


@pytest.mark.parametrize("operation", OF_A_START)
def test_operations_of_a_start_and_of_coming_here_fail_where_what_they_run_is_broken(
    broken: Path, operation: str
) -> None:
    for xml in (MANAGED, MANAGED + b" " * 300_000 + b"."):  # more than a pipe holds
        assert run([broken, "guest", operation, "begin", "-"], xml, "/nonexistent").returncode not in (0, 1)


@pytest.mark.parametrize("operation", OF_A_START)
def test_operations_of_a_start_and_of_coming_here_fail_closed(hook: Hook, operation: str) -> None:
    done = hook(operation, MANAGED)
    assert_fails_in_one_line(done)
    assert "systemctl restart virt-dmemd.socket" in done.stderr


def test_as_it_is_in_the_sources_it_fails_a_start_and_says_so() -> None:
    """A hook that was copied instead of installed says so, and no domain starts without its memory."""
    done = run([HOOK, "guest", "start", "begin", "-"], MANAGED, "/nonexistent")
    assert done.returncode != 0
    assert "virt-dmem-hook" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("operation", ["prepare", "migrate"])
def test_a_user_that_is_not_root_has_no_memory_of_ours(hook: Hook, operation: str) -> None:
    done = hook(operation, MANAGED * 1000, user=65534)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# what is asked


def test_the_call_says_what_libvirt_does_to_which_domain_and_since_when(hook: Hook, stand_in: StandIn) -> None:
    before = time.time()
    assert hook("prepare", MANAGED, stand_in([message()])).returncode == 0
    (call,) = stand_in.calls
    began = call["parameters"].pop("began")
    assert before - 0.02 <= began <= time.time(), "a clock tick is 10 ms"
    assert call == {
        "method": "dev.virt-dmem.Hook",
        "parameters": {"operation": "prepare", "xml": MANAGED.decode()},
        "more": True,
    }


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(1, 0xA0))) + '$HOME `id` $(id) \\u0000 \\" \\n %s EOF\nEOF\n.',
        "\x7f\x80\xa0\u07ff\u0800\ud7ff\ue000\uffff\u2028\U00010000\U0001f600\U0010ffff",
        "x" * (8 * MIB),
        "&#10;\n" * MIB + ".",
    ],
    ids=["control", "unicode", "large", "lines"],
)
def test_the_xml_arrives_as_it_is(hook: Hook, stand_in: StandIn, text: str) -> None:
    xml = MANAGED.decode() + text
    assert hook("start", xml.encode(), stand_in([message()])).returncode == 0
    assert stand_in.calls[0]["parameters"]["xml"] == xml


def test_a_nul_in_the_xml_does_not_end_the_call(hook: Hook, stand_in: StandIn) -> None:
    assert hook.ask("start", b"a\0b\n", stand_in([message()])).returncode == 0
    assert stand_in.calls[0]["parameters"]["xml"] == "a\0b"


@pytest.mark.parametrize(
    "bad",
    [
        *(
            b"\xff",
            b"\x80",
            b"\xc3",
            b"\xc0\x80",
            b"\xe0\x9f\xbf",
            b"\xed\xa0\x80",
            b"\xf0\x8f\xbf\xbf",
            b"\xe2\x82",
        ),
        *(b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe2\x82x", b"\xf0\x9f\x98"),
    ],
)
@pytest.mark.parametrize("operation", ["start", "restore"])
def test_xml_that_is_no_utf8_is_refused_and_nothing_broken_is_sent(hook: Hook, operation: str, bad: bytes) -> None:
    for after in (b"", b"<more/>"):
        done = hook(operation, MANAGED + bad + after)
        assert_fails_in_one_line(done)
        assert f"not valid UTF-8 at byte {len(MANAGED)}." in done.stderr


@settings(max_examples=200)
@given(st.binary(max_size=12) | st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_utf8_is_what_python_takes_for_it(plain: Hook, xml: bytes) -> None:
    done = plain.ask("start", xml, "/nonexistent")
    try:
        xml.removesuffix(b"\n").decode()
    except UnicodeDecodeError as error:
        assert f"not valid UTF-8 at byte {error.start}." in done.stderr
    else:
        assert "systemctl restart" in done.stderr


def test_xml_beyond_all_measure_is_refused(hook: Hook) -> None:
    done = hook.ask("start", b"x" * (65 * MIB), "/nonexistent")
    assert_fails_in_one_line(done)
    assert "larger than 64 MiB" in done.stderr


# what is answered


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize(
    ("xml", "printed"),
    [
        (MANAGED.decode(), ""),
        ("<domain/>", "<domain/>"),
        ('"\\ \n\t\u20ac\U0001f600\0.', '"\\ \n\t\u20ac\U0001f600\0.'),
        (MANAGED.decode() + "x", MANAGED.decode() + "x"),
        ("y" * (8 * MIB), "y" * (8 * MIB)),
    ],
    ids=["same", "other", "escapes", "longer", "large"],
)
def test_xml_that_the_daemon_changed_is_printed_and_nothing_where_it_did_not(
    hook: Hook, stand_in: StandIn, operation: str, xml: str, printed: str
) -> None:
    answer = json.dumps({"parameters": {"xml": xml}}).encode() + b"\0"
    done = hook(operation, MANAGED, stand_in(pieces(answer, 1_000_003)))
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
    assert stand_in.calls == [
        {"method": "dev.virt-dmem.FilterXml", "parameters": {"xml": MANAGED.decode()}, "more": False}
    ]


def test_xml_that_cannot_be_printed_is_a_failure(hook: Hook, stand_in: StandIn) -> None:
    answer = json.dumps({"parameters": {"xml": "<domain/>"}}).encode() + b"\0"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [hook.script, "guest", "migrate", "begin", "-"], input=MANAGED, stdout=full, stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "VIRT_DMEM_SOCKET": str(stand_in([answer]))}, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"cannot be written" in done.stderr


NONSENSE = [
    *(b"", b"{", b"\0", b"null\0", b"{}\0", b"[]\0", b"1\0", b'"parameters"\0', b"\xff\0", b"{}{}\0"),
    *(
        b'{"parameters": {}}\0',
        b'{"parameters": null}\0',
        b'{"parameters": []}\0',
        b'{"parameters": {"reply": 1}}\0',
    ),
    *(b'{"parameters": {"reply": {"links": {}}}}\0', b'{"parameters": {"reply": {"links": [null]}}}\0'),
    *(b'{"parameters": {"reply": {"links": [{}]}}}\0', b'{"parameters": {"reply": {"links": []}}} x\0'),
    *(b"[" * 100_000 + b"\0", b'{"error": 1}\0', b'{"error": "e", "parameters": {"message": []}}\0'),
    *(b'{"error": null, "parameters": {"message": "m", "hint": 1}}\0', message(continues=True)),
    message().replace(b"false", b"1"),
    message().replace(b'""', b"''"),
    message().replace(b'""', b'"\xc0\x80"'),
    message(links=[{"path": "/\0", "device": 1, "inode": 1}]),
    message(links=[{"path": "/", "device": -1, "inode": 1}]),
    message(links=[{"path": "/", "device": 1.0, "inode": True}]),
    message()[:-1],
]


@pytest.mark.parametrize("answer", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize("operation", ["start", "migrate"])
def test_an_invalid_answer_fails_the_start_in_one_line(
    hook: Hook, stand_in: StandIn, operation: str, answer: bytes
) -> None:
    assert_fails_in_one_line(hook(operation, MANAGED, stand_in([answer])))


def test_an_answer_without_an_end_is_not_kept_for_ever(hook: Hook, stand_in: StandIn) -> None:
    done = hook("start", MANAGED, stand_in([b" " * MIB] * 80))
    assert_fails_in_one_line(done)
    assert "larger than 64 MiB" in done.stderr


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"code": "x", "message": "It does not fit.", "hint": "Make room."}, "It does not fit. Make room. [x]"),
        ({"message": "It does not fit.", "hint": "Make room."}, "It does not fit. Make room."),
        ({"message": "It does not fit."}, "It does not fit."),
        ({"code": "x"}, "dev.virt-dmem.Failed"),
        ({"message": "a\nb\r\x1b[2Jc\x7f\x9bd\u20ac", "hint": "%s %n"}, "a b  [2Jc   d\u20ac %s %n"),
    ],
)
def test_a_refusal_is_passed_on_with_its_hint_in_one_line(
    hook: Hook, stand_in: StandIn, parameters: dict[str, object], said: str
) -> None:
    done = hook("prepare", MANAGED, stand_in([message(continues=True), refusal(**parameters)]))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"virt-dmem: {said}\n")


def test_whatever_has_no_glyph_or_turns_text_around_becomes_blank(hook: Hook, stand_in: StandIn) -> None:
    unseen = [
        chr(point)
        for point in range(1, sys.maxunicode + 1)
        if unicodedata.category(chr(point)) in ("Cc", "Cf", "Zl", "Zp")
    ]
    assert {"\x9b", "\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\u200b"} <= set(unseen)
    said = "a" + "é".join(unseen) + "€😀z"
    answer = message(continues=True) + refusal(message=said, hint="")
    done = hook("start", MANAGED, stand_in([answer]))
    assert "".join(done.stderr.split()) == "virt-dmem:a" + "é" * (len(unseen) - 1) + "€😀z"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.strip("\n").isprintable()


def test_bytes_that_are_no_text_become_blank_too(hook: Hook) -> None:
    for raw in (b"\x9b2J", b"\xc2", b"\xed\xa0\x80", b"\xf5x", b"\xe2\x80", b"\xc0\x8a"):
        done = hook("start", MANAGED, os.fsdecode(b"/nonexistent/" + raw + b"/sock"))
        assert done.stderr.strip("\n").isprintable()
        assert done.stderr.startswith("virt-dmem: virt-dmemd does not answer at /nonexistent/ ")


@pytest.mark.parametrize("size", [1, 7, 1 << 30])
def test_progress_goes_on_until_the_last_reply_however_it_is_cut_up(
    hook: Hook, stand_in: StandIn, size: int
) -> None:
    whole = message(continues=True) * 3 + message(message="x" * 300_000 if size > 7 else "")
    done = hook("prepare", MANAGED, stand_in(pieces(whole, size)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_data_after_the_last_reply_is_ignored(hook: Hook, stand_in: StandIn) -> None:
    assert hook("prepare", MANAGED, stand_in([message() + b"nonsense\0"])).returncode == 0


@pytest.fixture(scope="module")
def plain() -> Iterator[Hook]:
    with tempfile.TemporaryDirectory(prefix="virt-dmem-test-") as directory:
        yield Hook(Path(directory))


@pytest.fixture(scope="module")
def hasty() -> Iterator[Hook]:
    """A hook that waits for a second, not for ten."""
    with tempfile.TemporaryDirectory(prefix="virt-dmem-test-") as directory:
        yield Hook(Path(directory), ["-DANSWER_SECONDS=1"])


@pytest.mark.parametrize("answer", [b"", message(continues=True), message()[:-1]], ids=["nothing", "some", "half"])
def test_a_daemon_that_falls_silent_fails_the_start(hasty: Hook, stand_in: StandIn, answer: bytes) -> None:
    done = hasty("start", MANAGED, stand_in([answer], stay=True))
    assert_fails_in_one_line(done)
    assert "timed out after 1 s without a reply. Restart it with 'systemctl restart" in done.stderr


def test_a_daemon_that_never_takes_the_call_fails_the_start(hasty: Hook, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        done = hasty("start", MANAGED + b" " * (8 * MIB) + b".", tmp_path / "sock")
    assert_fails_in_one_line(done)
    assert "timed out after 1 s" in done.stderr


def test_a_daemon_that_keeps_reporting_progress_is_waited_for(hasty: Hook, stand_in: StandIn) -> None:
    answers = [message(continues=True)] * 4 + [message()]
    assert hasty("start", MANAGED, stand_in(answers, pause=0.4)).returncode == 0


def test_a_socket_that_cannot_be_named_fails_the_start(hook: Hook) -> None:
    done = hook("start", MANAGED, "/" + "x" * 200)
    assert_fails_in_one_line(done)
    assert "File name too long" in done.stderr


# links


def test_a_link_is_followed_and_compared_by_device_and_inode(hook: Hook, stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "extent").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "extent")
    found = (tmp_path / "extent").stat()
    right = {"path": str(tmp_path / "link"), "device": found.st_dev, "inode": found.st_ino}
    assert hook("start", MANAGED, stand_in([message(links=[right] * 3)])).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"inode": 1}, "resolves to another file"),
        ({"device": 1}, "resolves to another file"),
        ({"inode": (1 << 64) - 1}, "resolves to another file"),
        ({"inode": 1 << 80}, "resolves to another file|not a JSON object"),  # json-c 0.18 accepts no such number
        ({"path": "/nonexistent/pc.ram"}, "does not resolve to the pool"),
        ({"path": ""}, "does not resolve to the pool"),
    ],
)
def test_a_link_that_leads_elsewhere_or_nowhere_fails_the_start(
    hook: Hook, stand_in: StandIn, tmp_path: Path, wrong: dict[str, object], complaint: str
) -> None:
    (tmp_path / "extent").write_text("")
    found = (tmp_path / "extent").stat()
    right = {"path": str(tmp_path / "extent"), "device": found.st_dev, "inode": found.st_ino}
    done = hook("start", MANAGED, stand_in([message(links=[right, right | wrong])]))
    assert_fails_in_one_line(done)
    assert re.search(complaint, done.stderr)


# any answer at all

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LINKS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("path", "device", "inode"), JSON)), max_size=2)
REPLIES = st.fixed_dictionaries(
    {},
    optional={
        "parameters": st.fixed_dictionaries({}, optional={
            "reply": st.fixed_dictionaries({}, optional={"links": st.just([]) | LINKS | JSON}) | JSON,
            "message": JSON, "hint": JSON, "code": JSON, "xml": JSON,
        }) | JSON,
        "continues": st.booleans() | JSON,
    },
)  # fmt: skip
MESSAGES = (
    (REPLIES | JSON | st.fixed_dictionaries({"error": JSON, "parameters": JSON}))
    .map(lambda value: json.dumps(value).encode() + b"\0")
    .flatmap(lambda whole: st.sampled_from([whole, whole, whole[:-2] + b"\0", whole[1:]]))
)


def is_sensible(answers: bytes) -> bool:
    """Whether these replies, cut at their NULs, let a domain start that has no links."""
    for raw in answers.split(b"\0")[:-1]:
        try:
            reply = json.loads(raw)
            links = reply["parameters"]["reply"]["links"]
        except (ValueError, LookupError, TypeError):
            return False
        more = reply.get("continues", False)
        if "error" in reply or links != [] or not isinstance(more, bool):
            return False
        if not more:
            return True
    return False


@settings(max_examples=100)
@given(st.lists(MESSAGES | st.binary(max_size=30), max_size=3))
def test_no_answer_crashes_it_and_no_invalid_one_starts_a_domain(hook: Hook, answers: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stand_in = StandIn(Path(directory))
        done = hook.ask("start", MANAGED, stand_in(answers))
        stand_in.close()
    if is_sensible(b"".join(answers)):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    else:
        assert_fails_in_one_line(done)


# the program


def test_it_says_its_version_and_how_it_is_used(hook: Hook) -> None:
    assert subprocess.run([hook.client, "--version"], capture_output=True, text=True, check=True).stdout == (
        f"virt-dmem-hook {__version__}\n"
    )
    done = subprocess.run([hook.client, "start"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr
