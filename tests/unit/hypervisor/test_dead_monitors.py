# SPDX-License-Identifier: GPL-2.0-or-later
"""The sockets of monitors that nobody listens on are removed, and nothing else in QEMU's directory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from virt_dmem.domain_xml import monitor
from virt_dmem.hypervisor import dead_monitors

DEAD, ALIVE, EARLY, FILE = (f"6f8d9c0e-1b1f-4c88-9d3c-3c1a7f4f000{number}" for number in range(4))


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the directory, with the sockets of three domains, and what its owner put there."""
    with TemporaryDirectory() as path:  # a short one: the path of a socket is at most 107 bytes long
        monkeypatch.setattr(monitor, "_DIRECTORY", path)
        bound = {uuid: socket.socket(socket.AF_UNIX) for uuid in (DEAD, ALIVE, EARLY)}
        for uuid, one in bound.items():
            one.bind(str(monitor.socket_of(uuid)))
        bound[ALIVE].listen()
        bound[DEAD].close()
        monitor.socket_of(FILE).write_text("a file")
        Path(path, "other.qmp").touch()
        Path(path, f"libvirt-{DEAD}0.qmp").touch()
        yield Path(path)
        for one in bound.values():
            one.close()


def test_only_names_of_monitors_are_looked_at(directory: Path) -> None:
    assert dead_monitors.found() == {DEAD, ALIVE, EARLY, FILE}


def test_only_the_socket_of_a_qemu_that_is_gone_is_removed(directory: Path) -> None:
    before = {path.name for path in directory.iterdir()}
    assert dead_monitors.remove_unbound(dead_monitors.found(), dry_run=True) == [DEAD]
    assert {path.name for path in directory.iterdir()} == before
    assert dead_monitors.remove_unbound(dead_monitors.found()) == [DEAD]
    assert before - {path.name for path in directory.iterdir()} == {f"libvirt-{DEAD}.qmp"}
    assert dead_monitors.remove_unbound([]) == []


def test_the_socket_of_a_domain_that_ended_is_removed_unless_somebody_listens(directory: Path) -> None:
    assert dead_monitors.remove(DEAD)
    assert not dead_monitors.remove(DEAD)
    assert not dead_monitors.remove(ALIVE)


def test_a_directory_that_is_a_link_of_another_user_is_not_entered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = directory / "link"
    directory.chmod(0o777)  # others may write there
    link.symlink_to(directory)
    monkeypatch.setattr(monitor, "_DIRECTORY", str(link))
    assert not dead_monitors.remove(DEAD)
