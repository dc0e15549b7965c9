# SPDX-License-Identifier: GPL-2.0-or-later
"""Create pools on this machine's kernel, and interrupt that: by kill -9, a reboot."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.hugepages_lock import hugepages_lock
from virt_dmem.config.schema import Config, DaemonConfig
from virt_dmem.host import huge_pages, kernel, numa
from virt_dmem.pools import manage, registry
from virt_dmem.pools.record import PoolRecord

__all__ = [
    "HUGE",
    "HVO",
    "MIB",
    "SIZE",
    "kill_at",
    "killed",
    "lose",
    "lower",
    "no_spare_pages",
    "real_config",
    "reboot",
    "taken",
]

MIB = 1 << 20
HUGE = 2 * MIB
SIZE = 16 * HUGE
HVO = Path("/proc/sys/vm/hugetlb_optimize_vmemmap")


def taken() -> int:
    return sum(huge_pages.counters(HUGE, node.node).persistent for node in numa.nodes())


@contextmanager
def real_config() -> Iterator[Config]:
    """Provide a place for private pools, and restore the host's huge pages and HVO setting after the test."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="virt-dmem-test-") as top:
        Path(top).chmod(0o711)  # QEMU's user must be able to traverse it
        with _host_left_as_found(
            config := Config(daemon=DaemonConfig(state_dir=f"{top}/state", run_dir=f"{top}/run"))
        ):
            yield config


@contextmanager
def _host_left_as_found(config: Config) -> Iterator[None]:
    with hugepages_lock():
        before, hvo = taken(), HVO.read_text()
        HVO.write_text("0\n")
        try:
            yield
            for pool in {record.pool for record in registry.records(config)}:  # of a test that failed
                manage.destroy(config, pool)
            for _ in range(100):  # other programs on this machine do not use the lock
                if taken() == before:
                    break
                time.sleep(0.1)
            assert (taken(), HVO.read_text()) == (before, "0\n")
        finally:
            HVO.write_text(hvo)


def killed(work: Callable[[], object]) -> None:
    """Run ``work`` in a process that must end by kill -9 within it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_at(report: int) -> Callable[[str, int, int], None]:
    """Return a callback that kills this process at its n-th call."""
    left = [report]

    def die(_doing: str, _done: int, _total: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def reboot(config: Config, name: str) -> None:
    """Leave of a pool only what a reboot leaves: its record."""
    now = kernel.boot_id()
    kept = {path: path.read_text() for path in config.pool_records_dir.glob(f"{name}*.json")}
    manage.destroy(config, name)
    for path, text in kept.items():
        path.write_text(text.replace(now, "an earlier boot"))


@contextmanager
def no_spare_pages() -> Iterator[None]:
    """Reserve the host's free huge pages, if it has some: else whoever lowers their number takes these first."""
    counters = huge_pages.counters(HUGE)
    spare = max(0, counters.free - counters.reserved) * HUGE
    if not spare:
        yield
        return
    with tempfile.TemporaryDirectory(dir="/run", prefix="virt-dmem-test-") as top:
        subprocess.run(
            ["mount", "-t", "hugetlbfs", "-o", f"pagesize=2M,min_size={spare}", "spare", top], check=True
        )
        try:
            yield
        finally:
            subprocess.run(["umount", top], check=True)


def lower(pages: int) -> None:
    """Lower the number of huge pages of the first node, as somebody does who does not know of pools."""
    node = numa.nodes()[0].node
    huge_pages.set_persistent(HUGE, node, huge_pages.counters(HUGE, node).persistent - pages)


def lose(record: PoolRecord, pages: int) -> None:
    """Have the kernel take pages of a pool whose number was lowered: they are used and freed."""
    file = Path(record.mount) / "libvirt-gone"
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, pages * record.page_size)
    file.unlink()
