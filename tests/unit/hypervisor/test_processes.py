# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU processes are found by PID file and command line, which any process may choose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.rig.fake_tree import fake_process, put
from virt_dmem.host import processes
from virt_dmem.hypervisor import processes as qemu_processes

UUID = "b31b41e6-66e0-4abb-873d-d1c0bfc91fb4"


def test_qemu_is_found_by_libvirts_pid_file_when_that_process_is_this_domain(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-uuid", UUID])
    fake_process(tmp_path, 71, cmdline=["qemu-system-x86_64", "-uuid", UUID.upper()])
    put(tmp_path / "run/guest.pid", "71\n")
    assert qemu_processes.find_qemu(tmp_path / "run", "guest", UUID, root=tmp_path) == 71


def test_qemu_is_found_by_its_uuid_when_the_pid_file_is_stale_or_missing(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-uuid", UUID])
    fake_process(tmp_path, 71, cmdline=["sleep", "-uuid"])
    put(tmp_path / "run/guest.pid", "71\n")
    assert qemu_processes.find_qemu(tmp_path / "run", "guest", UUID, root=tmp_path) == 70
    assert qemu_processes.find_qemu(tmp_path / "run", "other", UUID, root=tmp_path) == 70
    assert qemu_processes.find_qemu(tmp_path / "run", "guest", UUID.replace("b", "c"), root=tmp_path) is None


def test_another_s_uuid_among_what_a_domain_adds_to_its_command_line_does_not_count(tmp_path: Path) -> None:
    other = UUID.replace("b", "c")
    fake_process(
        tmp_path, 70, cmdline=["qemu", "-name", "guest=web", "-uuid", UUID, "-name", "guest=x", "-uuid", other]
    )
    assert qemu_processes.find_qemu(tmp_path / "run", "web", UUID, root=tmp_path) == 70
    assert qemu_processes.find_qemu(tmp_path / "run", "web", other, root=tmp_path) is None
    assert qemu_processes.qemu_domain(70, root=tmp_path) == (UUID, "web")


@pytest.mark.parametrize("name", ["../run/pipe", "/run/pipe", "x\0y", "n" * 300])
def test_a_name_that_libvirt_would_not_take_leads_to_no_pid_file(tmp_path: Path, name: str) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu", "-uuid", UUID])
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/pipe.pid")  # opening it would block for ever
    assert (
        qemu_processes.find_qemu(tmp_path / "run", name.replace("/run", f"{tmp_path}/run"), UUID, root=tmp_path)
        == 70
    )


def test_the_name_on_a_command_line_is_cut_to_the_longest_name_of_a_domain(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu", "-uuid", UUID, "-name", "guest=a,,b,debug-threads=on"])
    fake_process(tmp_path, 71, cmdline=["qemu", "-uuid", UUID, "-name", "guest=" + "n" * 100_000])
    fake_process(tmp_path, 72, cmdline=["qemu", "-uuid", "9" * 5000, "-name", "guest=a"])
    put(tmp_path / "proc/73/cmdline", "")
    (tmp_path / "proc/73/cmdline").write_bytes(b"qemu\0-uuid\0" + UUID.encode() + b"\0-name\0guest=a\xff\xedb\0")
    assert qemu_processes.qemu_domain(70, root=tmp_path) == (UUID, "a,b")
    _, name = qemu_processes.qemu_domain(71, root=tmp_path) or ("", "")
    assert len(name) < 256
    assert qemu_processes.qemu_domain(72, root=tmp_path) is None
    fake_process(tmp_path, 74, cmdline=["qemu", "-uuid", UUID, "-name", "guest=a\nall is well"])
    assert qemu_processes.qemu_domain(74, root=tmp_path) == (UUID, UUID)
    _, name = qemu_processes.qemu_domain(73, root=tmp_path) or ("", "")
    assert name.encode().decode() == name


def test_a_qemu_that_waits_for_a_guest_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    fake_process(tmp_path, 70, cmdline=["qemu-system-x86_64", "-incoming", "defer"])
    fake_process(tmp_path, 71, cmdline=["qemu-system-x86_64", "-name", "guest=-incoming"])
    assert [qemu_processes.waits_for_guest(pid, root=tmp_path) for pid in (70, 71, 72)] == [True, False, False]


def test_a_real_process_is_found_by_the_uuid_on_its_command_line(tmp_path: Path) -> None:
    uuid = str(uuid4())  # a UUID of no other process: all of this host are searched
    command = ["sh", "-c", "echo ready; read -r line", "sh", "-uuid", uuid]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert qemu_processes.find_qemu(tmp_path, "guest", uuid) == process.pid
        assert processes.process_name(process.pid) == "sh"
