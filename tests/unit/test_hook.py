# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook does no harm: to domains that are not ours, to running guests, to libvirtd that waits for it.

The daemon here is a stand-in that plays the other end of the socket badly; with the real one the hook is
tested in tests/libvirt.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "hooks/qemu.d/50-virt-dmem"
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


def run_hook(
    operation: str, xml: bytes, socket_path: Path | str = "/nonexistent", *, without_python: bool = False
) -> subprocess.CompletedProcess[str]:
    command = [str(HOOK), "guest", operation, "begin", "-"]
    if without_python:
        command = [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount --bind /dev/null /usr/bin/python3 && exec "$@"',
            "sh",
            *command,
        ]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "VIRT_DMEM_SOCKET": str(socket_path)}
    done = subprocess.run(command, input=xml, env=environment, capture_output=True, timeout=30, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[[list[bytes]], Path]]:
    """A daemon's stand-in that answers one call with the given bytes, and then closes."""
    threads = []

    def serve(answers: list[bytes]) -> Path:
        path = tmp_path / "sock"
        path.unlink(missing_ok=True)  # of one that was served before
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            with listener, listener.accept()[0] as caller:
                caller.recv(1 << 20)
                for part in answers:
                    caller.sendall(part)

        threads.append(threading.Thread(target=answer))
        threads[0].start()
        return path

    yield serve
    for thread in threads:
        thread.join()


def message(*, continues: bool = False, **reply: object) -> bytes:
    whole = {"done": not continues, "message": "", "done_bytes": 0, "total_bytes": 0, "links": []} | reply
    return json.dumps({"parameters": {"reply": whole}, "continues": continues}).encode() + b"\0"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_domain_that_is_not_ours_passes_even_where_python_is_broken(operation: str) -> None:
    done = run_hook(operation, b"<domain><name>other</name></domain>", without_python=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("operation", ["reconnect", "stopped", "release", "attach", "new"])
def test_operations_that_may_not_fail_do_not_fail_for_our_domains_either(operation: str) -> None:
    assert run_hook(operation, MANAGED, without_python=True).returncode == 0
    assert run_hook(operation, MANAGED).returncode == 0


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "migrate", "restore"])
def test_operations_of_a_start_and_of_coming_here_fail_closed(operation: str) -> None:
    assert run_hook(operation, MANAGED, without_python=True).returncode != 0
    done = run_hook(operation, MANAGED)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, "one line"
    assert "systemctl start virt-dmemd.socket" in done.stderr


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize(("xml", "printed"), [(MANAGED.decode(), ""), ("<domain/>", "<domain/>")])
def test_xml_that_the_daemon_changed_is_printed_and_nothing_where_it_did_not(
    stand_in: Callable[[list[bytes]], Path], operation: str, xml: str, printed: str
) -> None:
    answer = json.dumps({"parameters": {"xml": xml}}).encode() + b"\0"
    done = run_hook(operation, MANAGED, stand_in([answer]))
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


@pytest.mark.parametrize("answers", [[], [b"{"], [b"\0"], [b"null\0"], [b"{}\0"], [b'{"parameters": {}}\0']])
def test_a_daemon_that_answers_nonsense_fails_the_start_in_one_line(
    stand_in: Callable[[list[bytes]], Path], answers: list[bytes]
) -> None:
    done = run_hook("start", MANAGED, stand_in(answers))
    assert done.returncode == 1
    assert done.stderr.startswith("virt-dmem: ")
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_passed_on_with_its_hint(stand_in: Callable[[list[bytes]], Path]) -> None:
    parameters = {"code": "not-enough-memory", "message": "It does not fit.", "hint": "Make room."}
    refusal = json.dumps({"error": "dev.virt-dmem.Failed", "parameters": parameters}).encode() + b"\0"
    done = run_hook("prepare", MANAGED, stand_in([message(continues=True), refusal]))
    assert (done.returncode, done.stderr) == (1, "virt-dmem: It does not fit. Make room.\n")


def test_progress_goes_on_until_the_last_reply_however_it_is_cut_up(
    stand_in: Callable[[list[bytes]], Path],
) -> None:
    whole = message(continues=True) * 3 + message()
    done = run_hook("prepare", MANAGED, stand_in([whole[at : at + 7] for at in range(0, len(whole), 7)]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_link_is_followed_and_compared_by_device_and_inode(
    stand_in: Callable[[list[bytes]], Path], tmp_path: Path
) -> None:
    (tmp_path / "extent").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "extent")
    found = (tmp_path / "extent").stat()
    right = {"path": str(tmp_path / "link"), "device": found.st_dev, "inode": found.st_ino}
    assert run_hook("start", MANAGED, stand_in([message(links=[right])])).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"inode": 1}, "leads to another file"),
        ({"path": "/nonexistent/pc.ram"}, "does not lead to the pool"),
    ],
)
def test_a_link_that_leads_elsewhere_or_nowhere_fails_the_start(
    stand_in: Callable[[list[bytes]], Path], tmp_path: Path, wrong: dict[str, object], complaint: str
) -> None:
    (tmp_path / "extent").write_text("")
    found = (tmp_path / "extent").stat()
    link = {"path": str(tmp_path / "extent"), "device": found.st_dev, "inode": found.st_ino} | wrong
    done = run_hook("start", MANAGED, stand_in([message(links=[link])]))
    assert done.returncode == 1
    assert complaint in done.stderr
