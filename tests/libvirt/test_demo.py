# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the demo: it completes, and restores the host however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.repository import REPOSITORY
from virt_dmem.host import huge_pages

PAGE = 2 << 20
DEMO = [sys.executable, "-m", "tools.demo"]


def host_state() -> tuple[int, bool | None]:
    return huge_pages.counters(PAGE).pages, huge_pages.hvo()


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_it_completes_with_measured_figures() -> None:
    before = host_state()
    done = subprocess.run(DEMO, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    story = done.stdout
    assert re.search(r"demo +1 GiB +2 MiB +16 MiB +\S+ MiB +\S+ MiB +(measured|estimate)", story)
    assert re.search(r'^ *\+ +<source type="file"/>$', story, re.MULTILINE)
    assert "Domain 'demo-guest' started" in story
    assert re.search(r"MemTotal: +4\d{5} kB", story)
    assert re.search(r"rw-s .*/run/virt-dmem/pools/demo/libvirt-[0-9a-f-]{36}/pc\.ram", story)
    reserved = re.findall(r"demo +hugetlbfs +2 MiB +1 GiB +(\S+ \S+) +(\S+ \S+) +ready", story)
    assert reserved == [("512 MiB", "512 MiB"), ("0 B", "1 GiB")]
    assert host_state() == before


PLAIN_CHROOT = """
set -e
root=$0
chmod 755 "$root"
for entry in /*; do
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root"
    elif [ -d "$entry" ]; then
        mkdir "$root$entry"
        case $entry in
        /tmp) mount --bind "$entry" "$root$entry" ;; # which root is below of
        *) mount --rbind "$entry" "$root$entry" ;;
        esac
    fi
done
mount -t tmpfs none "$root/sys/kernel/mm/hugepages"
exec chroot "$root" sh -ec 'cd "$0" && exec "$@"' "$@"
"""
"""Run a command where / is a directory and no mount point, as builders do, and where there are no huge pages."""


def test_in_a_chroot_without_huge_pages_it_says_so_and_continues_with_tmpfs(tmp_path: Path) -> None:
    chroot = ["unshare", "-m", "--propagation", "private", "sh", "-c", PLAIN_CHROOT, tmp_path, REPOSITORY]
    done = subprocess.run([*chroot, *DEMO], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no such memory available" in done.stdout
    assert re.search(r"demo +tmpfs +4 KiB +1 GiB +512 MiB", done.stdout)


@pytest.mark.needs_hugepages
@pytest.mark.usefixtures("exclusive_hugepages")
def test_ctrl_c_in_the_middle_undoes_everything() -> None:
    before = host_state()
    with subprocess.Popen(
        DEMO, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "virsh" in line and "start" in line:
                assert huge_pages.counters(PAGE).pages >= before[0] + 512
                os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
                break
        rest = demo.stdout.read()
        assert demo.wait(timeout=300) == 130, rest
    assert "Interrupted; all changes have been reverted." in rest
    assert host_state() == before
