# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever comes over the control socket, the daemon goes on answering others. A real virt-dmemd, no libvirt."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rig.repository import REPOSITORY
from virt_dmem.daemon.views import ControlInterface
from virt_dmem.errors import DaemonUnreachable, DmemError
from virt_dmem.ipc.client import Client
from virt_dmem.ipc.connection import CALLS_WAITING, ROOT_MESSAGE_BYTES
from virt_dmem.ipc.server import CONNECTIONS

MIB = 1 << 20
INTERFACE = "dev.virt-dmem"
METHODS = sorted(name for name in vars(ControlInterface) if name[0].isupper())
LIST = json.dumps({"method": f"{INTERFACE}.ListPools"}).encode() + b"\0"


class Daemon:
    """A virt-dmemd in a directory of its own."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = directory / "run/sock"
        self.log = directory / "log"
        self.process = process

    def connect(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(60)
        caller.connect(str(self.path))
        return caller

    def require_answer(self) -> None:
        """It is there, and answers somebody new: at once, or a little later on a busy machine."""
        began = time.monotonic()
        with Client(self.path) as client:
            assert client.call("ListPools") == {"pools": []}
        assert time.monotonic() - began < 30

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def running(directory: Path, open_files: int | None = None) -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("needs root: nobody else may ask virt-dmemd")
    config = directory / "virt-dmem.toml"
    config.write_text(
        f'[daemon]\nrun_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n[libvirt]\nuri = "test:///default"\n'
    )
    arguments = [sys.executable, "-m", "virt_dmem.daemon.main", "--config", str(config), "--log-level", "warning"]
    with (directory / "log").open("wb") as log, subprocess.Popen(arguments, cwd=REPOSITORY, stderr=log) as process:
        daemon = Daemon(directory, process)
        try:
            if open_files:
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files, open_files))
            for _ in range(2400):
                try:
                    daemon.require_answer()
                    break
                except DaemonUnreachable:
                    assert process.poll() is None, daemon.log.read_text()
                    time.sleep(0.05)
            yield daemon
            assert process.poll() is None, daemon.log.read_text()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all: what one test does to it, the next one would notice."""
    with running(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


def send(daemon: Daemon, data: bytes, *, half_close: bool) -> bytes:
    """Send, as far as it is taken; return what comes until the daemon has nothing more to say."""
    with daemon.connect() as caller:
        try:
            caller.sendall(data)
            if half_close:
                caller.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        caller.settimeout(60 if half_close else 0.02)
        heard = b""
        try:
            while chunk := caller.recv(65536):
                heard += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return heard


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None), max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
parameter_names = st.sampled_from(["operation", "xml", "domain", "name", "dry_run", "undo", "seconds", "other"])
words = st.sampled_from(
    [
        "prepare",
        "start",
        "release",
        "",
        "../../etc/passwd",
        "<domain",
        "\x00",
        "\ud800",
        "guest",
        "%s%n",
        "x" * 5000,
    ]
)
xmls = st.sampled_from(
    [
        "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/>",
        "<domain><metadata><m:memory xmlns:m='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata></domain>",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/shadow'>]><d>&a;https://virt-dmem.dev/xmlns/domain/1.0</d>",
        "https://virt-dmem.dev/xmlns/domain/1.0 \ud800",
    ]
)
calls = st.fixed_dictionaries(
    {
        "method": st.sampled_from([f"{INTERFACE}.{method}" for method in METHODS])
        | st.text(max_size=20)
        | json_values
    },
    optional={
        "parameters": st.dictionaries(parameter_names, words | xmls | json_values, max_size=3) | json_values,
        "more": st.booleans() | json_values,
        "oneway": st.booleans() | json_values,
        "upgrade": json_values,
    },
)
quickly = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@quickly
@given(data=st.binary(max_size=300) | st.lists(st.binary(max_size=40), max_size=5).map(b"\0".join))
def test_bytes_that_mean_nothing(daemon: Daemon, data: bytes) -> None:
    send(daemon, data, half_close=True)
    daemon.require_answer()


@quickly
@given(call=calls)
def test_calls_of_any_shape_are_answered_or_hung_up_on(daemon: Daemon, call: dict[str, Any]) -> None:
    heard = send(daemon, json.dumps(call).encode() + b"\0", half_close=True)
    for answer in heard.split(b"\0")[:-1]:
        assert isinstance(json.loads(answer), dict)
        assert b"InternalServerError" not in answer
    daemon.require_answer()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"\0",
        b'{"method":' * 200_000 + b"\0",
        b"9" * 10_000 + b"\0",
        b"\xff\0",
        b'{"method": "\xed\xa0\x80"}\0',
        LIST[:-1] + b"\xff\xfe\0",
        b"\0" * 100_000,
    ],
    ids=["deep list", "deep object", "long number", "no UTF-8", "surrogate", "rest", "empty calls"],
)
def test_what_trips_a_json_parser(daemon: Daemon, data: bytes) -> None:
    assert send(daemon, data, half_close=True) in (b"", b'{"error":"invalid.asyncvarlink.ProtocolViolation"}\0')
    daemon.require_answer()


def test_a_call_without_end_is_cut_off_and_its_memory_given_back(daemon: Daemon) -> None:
    before = daemon.rss_bytes()
    with daemon.connect() as caller, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(ROOT_MESSAGE_BYTES // MIB + 2):
            caller.sendall(b"x" * MIB)
    daemon.require_answer()
    assert daemon.rss_bytes() - before < 3 * ROOT_MESSAGE_BYTES


def test_a_large_domain_is_no_attack(daemon: Daemon) -> None:
    xml = f"<domain><!--{'x' * 3 * MIB}--></domain>"
    with Client(daemon.path) as client:
        (answer,) = client.call_more("Hook", operation="release", xml=xml)
    assert answer["reply"]["done"]
    daemon.require_answer()


def test_calls_faster_than_they_are_served_are_cut_off(daemon: Daemon) -> None:
    with daemon.connect() as caller, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(200):
            caller.sendall(LIST * 1000)
    daemon.require_answer()


def test_several_calls_at_once_are_all_answered(daemon: Daemon) -> None:
    assert send(daemon, LIST * CALLS_WAITING, half_close=True).count(b"\0") == CALLS_WAITING


def test_who_does_not_read_the_answers_gets_no_more_of_them(daemon: Daemon) -> None:
    before = daemon.rss_bytes()
    with daemon.connect() as caller:
        caller.settimeout(0.3)
        description = json.dumps(
            {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": INTERFACE}}
        )
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):  # the latter on a busy machine
            for _ in range(100_000):
                caller.sendall(description.encode() + b"\0")
                time.sleep(0.0001)
        daemon.require_answer()
        assert daemon.rss_bytes() - before < 8 * MIB


def test_a_slow_caller_holds_nobody_up_and_is_served(daemon: Daemon) -> None:
    def crawl() -> None:
        with daemon.connect() as caller:
            for byte in LIST:
                caller.sendall(bytes([byte]))
                time.sleep(0.01)
            heard.append(caller.recv(4096))

    heard: list[bytes] = []
    crawling = [threading.Thread(target=crawl) for _ in range(20)]
    for thread in crawling:
        thread.start()
    while any(thread.is_alive() for thread in crawling):
        daemon.require_answer()
    assert [json.loads(answer.rstrip(b"\0")) for answer in heard] == [{"parameters": {"pools": []}}] * 20


def test_who_leaves_in_the_middle_of_a_call_or_before_its_answer(daemon: Daemon) -> None:
    for _ in range(50):
        with daemon.connect() as caller:
            caller.sendall(LIST[:10])
        with daemon.connect() as caller:
            caller.sendall(LIST)
    daemon.require_answer()


def test_file_descriptors_that_are_passed_are_closed(daemon: Daemon) -> None:
    daemon.require_answer()
    before = daemon.open_files()
    for data in (LIST, b"x", b"\0"):
        with daemon.connect() as caller:
            socket.send_fds(caller, [data], [0] * 200)
    daemon.require_answer()
    for _ in range(300):  # the last callers are let go of after the answer to another
        if daemon.open_files() <= before + 2:
            return
        time.sleep(0.1)
    assert daemon.open_files() <= before + 2


def test_more_callers_than_there_is_room_for_are_turned_away_and_the_others_served(daemon: Daemon) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Client(daemon.path))
        first.call("ListPools")
        crowd = [stack.enter_context(daemon.connect()) for _ in range(CONNECTIONS + 20)]
        with pytest.raises(DaemonUnreachable), Client(daemon.path) as late:
            late.call("ListPools")
        assert first.call("ListPools") == {"pools": []}
        assert crowd
    wait_until_it_answers(daemon)


def test_who_is_not_root_is_led_to_the_socket_for_reading() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become somebody else")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name, mode in (("sock", 0o600), ("sock-ro", 0o666)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(mode)
            listener.listen()
        if not (child := os.fork()):
            os.setgroups([])
            os.setuid(65534)
            with Client(f"{directory}/sock") as client:
                os._exit(0 if client.call("ListPools") == {} else 1)
        listener.settimeout(60)
        caller, _ = listener.accept()
        with caller:
            assert b"ListPools" in caller.recv(4096)
            caller.sendall(b"{}\0")
            assert os.waitpid(child, 0)[1] == 0


def test_who_may_not_connect_is_told_who_may_and_nothing_of_starting_the_daemon() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become somebody else")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.chmod(directory, 0o711)  # noqa: PTH101
        for name in ("sock", "sock-ro"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{directory}/{name}")
            Path(directory, name).chmod(0o600)
            listener.listen()
        if not (child := os.fork()):
            os.setgroups([])
            os.setuid(65534)
            try:
                Client(f"{directory}/sock")
            except DaemonUnreachable as error:
                os._exit(0 if "sock-ro: only root and members" in error.message and "root" in error.hint else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_one_that_listens_and_is_silent_is_to_be_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virt_dmem.ipc.client.ANSWER_TIMEOUT_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 107 bytes long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        with pytest.raises(DaemonUnreachable, match=r"timed out after 0\.1 s") as error, Client("sock") as daemon:
            daemon.call("ListPools")
    assert "systemctl restart virt-dmemd.service" in error.value.hint


def test_who_waits_to_be_let_in_where_all_may_come_keeps_root_out_of_nothing(daemon: Daemon) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # more than can wait
    os.kill(daemon.process.pid, signal.SIGSTOP)
    with ExitStack() as crowd:
        try:
            with pytest.raises(BlockingIOError):
                for _ in range(10_000):
                    one = crowd.enter_context(socket.socket(socket.AF_UNIX))
                    one.setblocking(False)
                    one.connect(f"{daemon.path}-ro")
            root = crowd.enter_context(daemon.connect())
            root.sendall(LIST)
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert json.loads(root.recv(4096).rstrip(b"\0")) == {"parameters": {"pools": []}}
    wait_until_it_answers(daemon)


def test_without_file_descriptors_it_waits_and_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, open_files=40) as daemon:
        with ExitStack() as stack:
            first = stack.enter_context(Client(daemon.path))
            for _ in range(30):
                stack.enter_context(daemon.connect())
            assert first.call("ListPools") == {"pools": []}
            time.sleep(0.2)
            used = cpu_seconds(daemon)
            time.sleep(1)
            assert cpu_seconds(daemon) - used < 0.3, "it does not spin"
            assert first.call("ListPools") == {"pools": []}
        wait_until_it_answers(daemon)
        assert daemon.log.read_text().count("\n") < 100
        assert "Traceback" not in daemon.log.read_text()


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_it_answers(daemon: Daemon) -> None:
    for _ in range(1200):
        try:
            daemon.require_answer()
            return
        except (DmemError, AssertionError):
            time.sleep(0.05)
    daemon.require_answer()
