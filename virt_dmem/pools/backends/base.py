# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a backend, a kind of pool memory.

A backend takes memory from the host (``acquire``), shows it as a directory of files (``mount``), and the other
way round (``unmount``, ``release``). All four may be repeated after a crash: what is about to change is written
to the pool's record first.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from virt_dmem.errors import PoolBusy, PoolError, UsageError
from virt_dmem.host import kernel, mounts, numa, processes
from virt_dmem.pools.record import PoolRecord

__all__ = [
    "BASE_PAGE",
    "NO_NODE",
    "Backend",
    "Job",
    "Probe",
    "Report",
    "run_program",
    "struct_pages_of",
]

NO_NODE = -1
"""Stands for a node where the backend knows none."""
BASE_PAGE = os.sysconf("SC_PAGESIZE")
_LET_GO_SECONDS = 3.0
_STRUCT_PAGE = 64  # sizeof(struct page) wherever HVO exists: it needs a power of two

Report = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done, and the bytes in all."""


def struct_pages_of(size_bytes: int) -> int:
    """Return the bytes of struct pages that an ordinary host keeps for so much memory."""
    return size_bytes // BASE_PAGE * _STRUCT_PAGE


@dataclass(frozen=True)
class Probe:
    """Whether this host has what a backend needs; the reason says what is missing."""

    available: bool
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """One pool being made or given back."""

    record: PoolRecord
    others: tuple[PoolRecord, ...]
    """The host's other pools."""
    save: Callable[[], None]
    """Writes the record to disk; returns when it is safe there."""
    report: Report
    root: Path = kernel.ROOT


class Backend(ABC):
    """One kind of pool memory. Stateless: all it has to remember is in the record."""

    name: ClassVar[str]
    fstype: ClassVar[str]
    zeroes_on_allocation: ClassVar[bool]
    """The kernel hands out memory of this kind clean; else we scrub it."""
    has_nodes: ClassVar[bool]
    """Memory can be taken from a node of choice; else it is all on ``NO_NODE``."""
    has_struct_pages: ClassVar[bool] = True
    """The kernel can pin its memory, as direct I/O and others want it."""
    lockable: ClassVar[bool] = True
    """Domains with locked memory may use it: QEMU can lock what it maps of it."""
    holds_nodes: ClassVar[bool] = False
    """The kernel promises memory of the host as a whole only: what is free has to be held on its node by files."""
    ready_ahead: ClassVar[bool] = True
    """We zero what is free, and bring it in ahead; else the kernel zeroes it by itself as soon as it is free."""
    counts_used: ClassVar[bool] = False
    """What the file system calls used is in files, or cannot be had: pinned pages, files unlinked while open."""
    from_host: ClassVar[bool] = False
    """What no file has is the host's memory to use."""
    resizes_in_place: ClassVar[bool] = False
    """A mounted pool can become larger and smaller; else segments come and go."""

    @abstractmethod
    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the page sizes in bytes that a pool may have on this host, the default first."""

    @abstractmethod
    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Tell whether this host can have such pools."""

    @abstractmethod
    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return the bytes of struct pages that stay for so much memory in such a pool, at the best."""

    def nodes(self, *, root: Path = kernel.ROOT) -> tuple[list[int], list[int]]:
        """Return the nodes that such a pool may have memory of, and those of them that it has it of unasked.

        Memory without CPUs nearby (CXL) is taken only where it is named: it is slow.
        """
        if not self.has_nodes:
            return [NO_NODE], [NO_NODE]
        with_memory = list(numa.nodes_with_memory(root=root))
        near = [node for node in with_memory if node not in numa.nodes_without_cpus(root=root)]
        return with_memory, near or with_memory

    def how_to_have_memory(self, *, root: Path = kernel.ROOT) -> str:
        """Return what is to be done where no node has memory for such a pool."""
        return "Look which nodes have memory ('virt-dmem plan-host')."

    def default_sizes(
        self, page_size: int, others: Sequence[PoolRecord], *, root: Path = kernel.ROOT
    ) -> dict[int, int]:
        """Return the bytes of each node that a pool has of which nobody said how large it is to be.

        :raise UsageError: When that has to be said.
        """
        raise UsageError("How large the pool is to be is missing.", hint="Give --size SIZE, or --node N=SIZE.")

    def zeroes(self, record: PoolRecord) -> bool:
        """Tell whether memory of this pool is handed out clean by the kernel."""
        return self.zeroes_on_allocation

    @abstractmethod
    def check(self, job: Job) -> None:
        """Look, before anything is changed, whether the host has the memory.

        :raise PoolShort: When it clearly has not.
        """

    @abstractmethod
    def acquire(self, job: Job) -> None:
        """Take what is still wanted from the host; what was got stays in the record, whatever happens.

        :raise PoolShort: When the host gives less; the caller then calls ``release``.
        """

    @abstractmethod
    def release(self, job: Job, *, keep_wanted: bool = False) -> int:
        """Give back to the host what we took, never more; return the bytes that would not go.

        :param keep_wanted: Give back only what is more than the record wants.
        """

    @abstractmethod
    def mount_options(self, record: PoolRecord) -> tuple[str, ...]:
        """Return the options to mount with; when one set is refused, the next is tried."""

    def mount(self, job: Job) -> None:
        """Mount the pool.

        The root directory is 0711: QEMU's user must be able to pass through it, and nobody can list it.

        :raise PoolError: When the kernel refuses.
        """
        self._mount(job, "nosuid,nodev,noexec,mode=0711,uid=0,gid=0")

    def remount(self, job: Job) -> None:
        """Give a mounted pool the size that its record wants, where it ``resizes_in_place``.

        :raise PoolError: When the kernel refuses; less than what is in it, it always does.
        """
        self._mount(job, "remount")

    def _mount(self, job: Job, how: str) -> None:
        record = job.record
        refusal = ""
        for options in self.mount_options(record):
            every = f"{how},{options}"
            refusal = run_program("mount", "-t", self.fstype, "-o", every, f"virt-dmem-{record.name}", record.mount)
            if not refusal:
                return
        raise self.mount_refused(job, f"Pool {record.name} could not be mounted at {record.mount}: {refusal}")

    def mount_refused(self, job: Job, message: str) -> PoolError:
        """Return the error for a mount that the kernel refused."""
        return PoolError(message, hint=f"Look into the kernel's log (dmesg) for what it has against {self.fstype}.")

    def mounted(self, record: PoolRecord, *, root: Path = kernel.ROOT) -> mounts.Mount | None:
        """Return the pool's mount; ``None`` when it is not there, or is something else."""
        found = mounts.mount_at(Path(record.mount), root=root)
        return found if found and found.fstype == self.fstype else None

    def unmount(self, record: PoolRecord) -> None:
        """Unmount the pool; who has just ended may hold it for a moment more, in a mount namespace of its own.

        :raise PoolBusy: When somebody is still in it.
        :raise PoolError: When the kernel refuses for another reason.
        """
        tried_until = time.monotonic() + _LET_GO_SECONDS
        while refusal := run_program("umount", record.mount):
            if "busy" in refusal and time.monotonic() < tried_until:
                time.sleep(0.1)
                continue
            kind = PoolBusy if "busy" in refusal else PoolError
            raise kind(
                f"Pool {record.name} could not be unmounted from {record.mount}: {refusal}",
                hint="End what still uses it ('virt-dmem list', 'fuser -m' on the mount), then try again.",
            )

    def bytes_by_node(self, path: Path, mappers: Sequence[int]) -> dict[int, int]:
        """Return how much of a file's memory is known to lie on each node: what the first of ``mappers`` touched.

        :param mappers: The PIDs of the processes that map it.
        """
        found = path.stat()
        return processes.bytes_by_node(mappers[0], found.st_dev, found.st_ino) if mappers else {}

    def capacity(self, record: PoolRecord, *, root: Path = kernel.ROOT) -> dict[int, int]:
        """Return the bytes that the pool really has by node now: as recorded and mounted, whichever is less."""
        left = 0
        if self.mounted(record, root=root):
            found = os.statvfs(record.mount)
            left = found.f_blocks * found.f_frsize
        capacity = {}
        for node, share in sorted(record.nodes.items()):
            capacity[node] = min(share.got_bytes, left)
            left -= capacity[node]
        return capacity


def run_program(*command: str) -> str:
    """Run mount(8) and the like; return its first line of complaint, ``""`` when it succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or f"{command[0]} ended with status {done.returncode}").splitlines()[0]
