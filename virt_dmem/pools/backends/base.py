# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the interface of a backend, a kind of pool memory.

A backend takes memory from the host (``acquire``), makes it available as a directory of files (``mount``), and
undoes both (``unmount``, ``release``). All four may be repeated after a crash: every change is written to the
pool's record first. ``table`` lists the backends; a new one is one module, and a line there.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from virt_dmem.errors import PoolBusy, PoolError, UsageError
from virt_dmem.host import hvo_bug, kernel, mounts, numa, processes
from virt_dmem.pools.backends.checks import BackendCheck
from virt_dmem.pools.backends.host_options import HostFacts, HostOption, Probe
from virt_dmem.pools.record import PoolRecord

if TYPE_CHECKING:
    import argparse

__all__ = ["Backend", "Job", "ProgressCallback", "Record", "MOUNT_FLAGS", "NO_NODE", "run_program"]

MOUNT_FLAGS = ("nosuid", "nodev", "noexec")
"""Flags of every pool's mount; mount(8) drops those that a remount does not name."""

NO_NODE = -1
"""Stands for a node where the backend knows none."""
_UNMOUNT_SECONDS = 3.0

ProgressCallback = Callable[[str, int, int], None]
"""Called with the operation, the bytes done, and the bytes in all."""

Record = TypeVar("Record", bound=PoolRecord)
"""The record of a backend: ``PoolRecord``, or a subclass with fields of its own."""


@dataclass(frozen=True)
class Job(Generic[Record]):
    """A change of one segment of a pool."""

    record: Record
    others: tuple[PoolRecord, ...]
    """The host's other segments."""
    save: Callable[[], None]
    """Writes the record to disk, and returns when it is safe there."""
    report: ProgressCallback
    root: Path = kernel.ROOT


class Backend(ABC, Generic[Record]):
    """One kind of pool memory. Stateless: all its state is in the record."""

    name: ClassVar[str]
    fstype: ClassVar[str]
    record: type[Record]
    """The type of its records."""
    zeroes_on_allocation: ClassVar[bool]
    """The kernel zeroes this memory when it allocates it; otherwise virt-dmem scrubs it."""
    has_nodes: ClassVar[bool]
    """Memory can be taken from a node of choice; otherwise all of it is on ``NO_NODE``."""
    has_struct_pages: ClassVar[bool] = True
    """The kernel can pin its memory, as direct I/O and others need it."""
    lockable: ClassVar[bool] = True
    """Domains with locked memory may use it: QEMU can lock its mappings."""
    holds_nodes: ClassVar[bool] = False
    """The kernel reserves its memory for the host as a whole only: free memory is held on its node by files."""
    prezeroable: ClassVar[bool] = True
    """virt-dmemd pre-zeroes free memory; otherwise the kernel zeroes it as soon as it is free."""
    counts_used: ClassVar[bool] = False
    """The file system's used bytes are in files, or unavailable: pinned pages, files unlinked while open."""
    from_host: ClassVar[bool] = False
    """Memory that is in no file is available to the host."""
    resizes_in_place: ClassVar[bool] = False
    """A mounted pool can grow and shrink; otherwise segments are added and removed."""

    @abstractmethod
    def page_sizes(self, *, root: Path = kernel.ROOT) -> tuple[int, ...]:
        """Return the page sizes in bytes that a pool may have on this host, the default first."""

    @abstractmethod
    def probe(self, *, root: Path = kernel.ROOT) -> Probe:
        """Return whether this host supports such pools."""

    @abstractmethod
    def metadata_left(self, size_bytes: int, page_size: int) -> int:
        """Return the bytes of struct pages that remain for ``size_bytes`` in such a pool, at best."""

    # What 'pool create', 'check' and 'plan-host' find here

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of 'pool create' that only this backend has."""

    def reject_options(self, args: argparse.Namespace, backend: str) -> None:
        """Reject this backend's own options in a command for another one.

        :raise UsageError: When one of them is given that makes no sense there.
        """

    def settings(self, args: argparse.Namespace, *, sized: bool) -> dict[str, Any]:
        """Return the fields of a new record that this backend's own options set.

        :param sized: The size of the pool is given by other options.
        :raise UsageError: When these options contradict each other.
        """
        return {}

    def inherited_settings(self, record: Record) -> dict[str, Any]:
        """Return the fields that a new segment of a pool takes over from its first one."""
        return {}

    def checks(self) -> tuple[BackendCheck, ...]:
        """Return the checks of 'virt-dmem check' that belong to this backend."""
        return ()

    def host_options(self, size_bytes: int, facts: HostFacts) -> list[HostOption]:
        """Return how a host could provide ``size_bytes`` of guest memory by this backend, for 'plan-host'."""
        return []

    # Before a pool is created

    def nodes(self, *, root: Path = kernel.ROOT) -> tuple[list[int], list[int]]:
        """Return the nodes that such a pool may use, and those of them that it uses by default.

        Nodes without CPUs (CXL memory) are slow, and used only where they are named.
        """
        if not self.has_nodes:
            return [NO_NODE], [NO_NODE]
        with_memory = list(numa.nodes_with_memory(root=root))
        near = [node for node in with_memory if node not in numa.nodes_without_cpus(root=root)]
        return with_memory, near or with_memory

    def how_to_have_memory(self, *, root: Path = kernel.ROOT) -> str:
        """Return the hint for a host where no node has memory for such a pool."""
        return "'virt-dmem plan-host' shows which nodes have memory."

    def default_sizes(
        self,
        page_size: int,
        settings: Mapping[str, Any],
        others: Sequence[PoolRecord],
        *,
        root: Path = kernel.ROOT,
    ) -> dict[int, int]:
        """Return the bytes by node of a pool whose size is not given.

        :param settings: As ``settings`` returned them.
        :raise UsageError: When the size has to be given.
        """
        raise UsageError("The size of the pool is missing.", hint="Give --size SIZE, or --node N=SIZE.")

    def created_otherwise(self, record: Record) -> str:
        """Return how a new pool differs from what was asked for; empty: it does not."""
        return ""

    def given_back(self, record: Record) -> int:
        """Return the bytes that the host gets when a segment is destroyed."""
        return record.got_bytes

    def freeing(self, record: Record, *, root: Path = kernel.ROOT) -> hvo_bug.Verdict:
        """Return whether the kernel loses memory of this segment when it is given back."""
        return hvo_bug.Verdict.GOOD

    def elastic(self, record: Record) -> bool:
        """Return whether the pool of a segment takes memory for domains, and gives it back after them."""
        return False

    def on_demand(self, record: Record) -> bool:
        """Return whether a segment was taken for a domain: it is not to be had again after a boot."""
        return self.elastic(record) and record.number > 0

    def zeroes(self, record: Record) -> bool:
        """Return whether the kernel zeroes the memory of this pool when it allocates it."""
        return self.zeroes_on_allocation

    # Changes of a segment

    @abstractmethod
    def check(self, job: Job[Record]) -> None:
        """Check that the host has the memory, before anything is changed.

        :raise PoolShort: When it clearly has not.
        """

    @abstractmethod
    def acquire(self, job: Job[Record]) -> None:
        """Take from the host what is still missing; the record always says how much was taken.

        :raise PoolShort: When the host provides less; the caller then calls ``release``.
        """

    def gone(self, job: Job[Record]) -> dict[int, int]:
        """Return the bytes by node that were taken for this pool and that the host does not have any more."""
        return {}

    def keep(self, job: Job[Record]) -> None:
        """Keep the host from taking more of a mounted pool, as far as that needs no memory.

        :raise PoolError: When the kernel rejects it.
        """

    def restore(self, job: Job[Record]) -> None:
        """Take from the host again what a mounted pool has lost there; its record stays as it is.

        :raise PoolShort: When the host provides less.
        :raise PoolError: When the kernel rejects it.
        """

    @abstractmethod
    def release(self, job: Job[Record], *, keep_wanted: bool = False) -> int:
        """Give back to the host what was taken for this pool, never more; return the bytes that could not be.

        :param keep_wanted: Give back only what exceeds the record's wanted size.
        """

    @abstractmethod
    def mount_options(self, record: Record) -> tuple[str, ...]:
        """Return sets of mount options; when the kernel rejects one, the next is tried."""

    def mount(self, job: Job[Record]) -> None:
        """Mount the pool.

        The root directory is 0711: QEMU's user must be able to pass through it, and nobody can list it.

        :raise PoolError: When the kernel rejects it.
        """
        self._mount(job, *MOUNT_FLAGS, "mode=0711", "uid=0", "gid=0")

    def remount(self, job: Job[Record]) -> None:
        """Give a mounted pool its record's ``target_bytes``, where it ``resizes_in_place``.

        :raise PoolError: When the kernel rejects it, as it does for any size below what is in use.
        """
        self._mount(job, "remount", *MOUNT_FLAGS)

    def _mount(self, job: Job[Record], *how: str) -> None:
        record = job.record
        refusal = ""
        for options in self.mount_options(record):
            every = ",".join([*how, options])
            refusal = run_program("mount", "-t", self.fstype, "-o", every, self.source(record), record.mount)
            if not refusal:
                return
        raise self.mount_refused(job, f"Pool {record.name} could not be mounted at {record.mount}: {refusal}")

    def source(self, record: PoolRecord) -> str:
        """Return the name under which a segment is mounted."""
        return f"virt-dmem-{record.name}"

    def mount_refused(self, job: Job[Record], message: str) -> PoolError:
        """Return the error for a mount that the kernel rejected."""
        return PoolError(message, hint=f"The kernel log (dmesg) may say why {self.fstype} rejected it.")

    def mounted(self, record: Record, *, root: Path = kernel.ROOT) -> mounts.Mount | None:
        """Return the pool's mount; ``None`` when it is not there, or is something else."""
        found = mounts.mount_at(Path(record.mount), root=root)
        return found if found and found.fstype == self.fstype else None

    def mounted_bytes(self, record: Record, *, root: Path = kernel.ROOT) -> int:
        """Return the size of the pool's mount; 0 when it is not there."""
        if not self.mounted(record, root=root):
            return 0
        found = os.statvfs(record.mount)
        return found.f_blocks * found.f_frsize

    def unmount(self, record: Record) -> None:
        """Unmount the pool; a process that is just exiting may keep it busy for a moment, in its mount namespace.

        :raise PoolBusy: When it is still in use.
        :raise PoolError: When the kernel rejects it for another reason.
        """
        tried_until = time.monotonic() + _UNMOUNT_SECONDS
        while refusal := run_program("umount", record.mount):
            if "busy" in refusal and time.monotonic() < tried_until:
                time.sleep(0.1)
                continue
            kind = PoolBusy if "busy" in refusal else PoolError
            raise kind(
                f"Pool {record.name} could not be unmounted from {record.mount}: {refusal}",
                hint="Stop what still uses it ('virt-dmem list', 'fuser -m' on the mount), then try again.",
            )

    def bytes_by_node(self, path: Path, mappers: Sequence[int]) -> dict[int, int]:
        """Return the bytes of a file known to be on each node: those that the first of ``mappers`` touched.

        :param mappers: The PIDs of the processes that map it.
        """
        found = path.stat()
        return processes.bytes_by_node(mappers[0], found.st_dev, found.st_ino) if mappers else {}

    def capacity(self, record: Record, *, root: Path = kernel.ROOT) -> dict[int, int]:
        """Return the bytes that the segment provides now, by node: the recorded or the mounted ones, if less."""
        left = self.mounted_bytes(record, root=root)
        capacity = {}
        for node, share in sorted(record.nodes.items()):
            capacity[node] = min(share.got_bytes, left)
            left -= capacity[node]
        return capacity


def run_program(*command: str) -> str:
    """Run mount(8) and the like; return the first line of its error, ``""`` when it succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or f"{command[0]} ended with status {done.returncode}").splitlines()[0]
