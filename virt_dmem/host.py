# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host is and has: NUMA nodes, huge pages, mounts, struct pages, processes.

Every function takes ``root``, the directory that stands for ``/``, so that a tree copied from another machine
can be read as well. Sizes are bytes, except where a name says pages. Only the two setters at the end write.

A process can keep its ``cmdline``, ``maps`` and ``numa_maps`` from being read, for ever. What looks at all
processes leaves such a one out; what looks at one is for worker threads.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from virt_dmem.overdue import each

__all__ = [
    "ROOT",
    "HugePages",
    "Mapping",
    "Memory",
    "Mount",
    "Node",
    "bad_pages_met",
    "boot_id",
    "cma_bytes",
    "find_qemu",
    "huge_page_sizes",
    "huge_pages",
    "hvo",
    "kernel_release",
    "libvirt_runs",
    "mappings",
    "memory",
    "mount_at",
    "mounts",
    "node_memory",
    "nodes",
    "nodes_with_memory",
    "nodes_without_cpus",
    "parse_list",
    "process_name",
    "processes",
    "processes_mapping",
    "processes_using",
    "qemu_pid",
    "set_huge_pages",
    "set_hvo",
    "struct_page_bytes",
    "uptime",
]

ROOT = Path("/")
_HVO = "proc/sys/vm/hugetlb_optimize_vmemmap"
_TAINT_BAD_PAGE = 1 << 5  # Documentation/admin-guide/tainted-kernels.rst
_OCTAL = re.compile(r"\\([0-7]{3})")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST_NAME = 251
"""libvirt has a file ``NAME.xml`` of each domain, and file names end at 255 bytes."""
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True)
class Memory:
    """Memory of the host or of one node; ``available_bytes`` is what can be had without swapping."""

    total_bytes: int
    free_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class HugePages:
    """Huge pages of one size, of one node or of the host; ``pages`` counts free, used and surplus ones.

    ``reserved`` are promised to mappings and mounts; the kernel counts them for the whole host only, so it
    is 0 for a node.
    """

    pages: int
    free: int
    surplus: int
    reserved: int = 0

    @property
    def persistent(self) -> int:
        """What was asked of ``nr_hugepages``: surplus pages go away by themselves when they are freed."""
        return self.pages - self.surplus


@dataclass(frozen=True)
class Node:
    """A NUMA node that is online; one without memory has ``memory.total_bytes`` 0."""

    node: int
    cpus: tuple[int, ...]
    memory: Memory


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``; ``device`` is what ``st_dev`` is on it."""

    device: int
    root: str
    path: str
    fstype: str
    source: str
    options: str


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``: addresses and offset in bytes, the file by device and inode."""

    start: int
    end: int
    perms: str
    offset: int
    device: int
    inode: int


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a kernel list such as ``0,2-3``."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def nodes(*, root: Path = ROOT) -> tuple[Node, ...]:
    """Return the nodes that are online; a kernel built without NUMA is one node 0 with everything.

    An only node has the memory of the host: that is more exact, and right also while the kernel is still
    initialising memory (deferred struct pages), which the node's own MemTotal does not count yet.
    """
    base = root / "sys/devices/system/node"
    try:
        online = parse_list((base / "online").read_text())
    except FileNotFoundError:
        cpus = parse_list((root / "sys/devices/system/cpu/online").read_text())
        return (Node(0, cpus, memory(root=root)),)
    return tuple(
        Node(
            node,
            parse_list((base / f"node{node}/cpulist").read_text()),
            node_memory(node, root=root) if len(online) > 1 else memory(root=root),
        )
        for node in online
    )


def nodes_with_memory(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the nodes that have memory; a kernel built without NUMA is one node 0."""
    try:
        return parse_list((root / "sys/devices/system/node/has_memory").read_text())
    except FileNotFoundError:
        return (0,)


def nodes_without_cpus(*, root: Path = ROOT) -> frozenset[int]:
    """Return the nodes whose memory is far from every CPU, such as CXL memory."""
    base = root / "sys/devices/system/node"
    try:
        online, with_cpus = (parse_list((base / name).read_text()) for name in ("online", "has_cpu"))
    except FileNotFoundError:
        return frozenset()
    return frozenset(online) - frozenset(with_cpus)


def memory(*, root: Path = ROOT) -> Memory:
    """Return the memory of the host, from ``/proc/meminfo``."""
    found = _meminfo(root / "proc/meminfo")
    return Memory(found["MemTotal"], found["MemFree"], found["MemAvailable"])


def pressure(of: str, *, root: Path = ROOT) -> float:
    """Return for how much of the last 10 s, in percent, some task waited: for ``cpu``, ``memory`` or ``io``.

    0 where the kernel does not tell (``/proc/pressure``, Documentation/accounting/psi.rst).
    """
    try:
        some = (root / "proc/pressure" / of).read_text("ascii")
    except OSError:
        return 0.0
    found = re.match(r"some avg10=([\d.]+) ", some)
    return float(found[1]) if found else 0.0


def node_memory(node: int, *, root: Path = ROOT) -> Memory:
    """Return the memory of a node by its own account.

    It has no MemAvailable; that is taken to be what is free plus page cache and slab that can be dropped.
    """
    found = _meminfo(root / f"sys/devices/system/node/node{node}/meminfo")
    reclaimable = sum(found.get(key, 0) for key in ("Active(file)", "Inactive(file)", "SReclaimable"))
    return Memory(found["MemTotal"], found["MemFree"], found["MemFree"] + reclaimable)


def _meminfo(path: Path) -> dict[str, int]:
    # "MemFree:  1234 kB", and on a node "Node 0 MemFree:  1234 kB"; lines without kB count pages
    lines = re.findall(r"(\S+):\s+(\d+) kB", path.read_text())
    return {key: int(value) * 1024 for key, value in lines}


def cma_bytes(*, root: Path = ROOT) -> int | None:
    """Return what the kernel keeps movable to allocate from it in one piece; ``None`` without CONFIG_CMA."""
    return _meminfo(root / "proc/meminfo").get("CmaTotal")


def huge_page_sizes(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the huge page sizes that the kernel offers, smallest first; none without hugetlb."""
    names = [path.name for path in (root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")]
    return tuple(sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) * 1024 for name in names))


def huge_pages(page_size: int, node: int | None = None, *, root: Path = ROOT) -> HugePages:
    """Return the counters of one page size, of a node or (``None``) of the host.

    :raise OSError: When there is no such page size or node.
    """
    base = _huge_pages_dir(page_size, node, root)

    def count(name: str) -> int:
        return int((base / name).read_text())

    reserved = count("resv_hugepages") if (base / "resv_hugepages").exists() else 0
    return HugePages(count("nr_hugepages"), count("free_hugepages"), count("surplus_hugepages"), reserved)


def _huge_pages_dir(page_size: int, node: int | None, root: Path) -> Path:
    name = f"hugepages-{page_size // 1024}kB"
    of_nodes = root / "sys/devices/system/node"
    if node is None or not of_nodes.exists():
        return root / "sys/kernel/mm/hugepages" / name
    return of_nodes / f"node{node}/hugepages" / name


def struct_page_bytes(*, root: Path = ROOT) -> int | None:
    """Return how much memory holds ``struct page``; ``None`` on kernels that do not count it (before 6.11).

    ``nr_memmap_pages`` and ``nr_memmap_boot_pages`` of ``/proc/vmstat``, which count base pages.
    """
    found = dict(re.findall(r"^(nr_memmap\w*_pages) (\d+)$", (root / "proc/vmstat").read_text(), re.MULTILINE))
    if "nr_memmap_pages" not in found:
        return None
    return sum(map(int, found.values())) * os.sysconf("SC_PAGESIZE")


def hvo(*, root: Path = ROOT) -> bool | None:
    """Tell whether HVO is switched on for huge pages taken from now on; ``None`` where the kernel has none."""
    try:
        return (root / _HVO).read_text().strip() != "0"
    except FileNotFoundError:
        return None


def bad_pages_met(*, root: Path = ROOT) -> bool:
    """Tell whether the kernel has met a page in a bad state since it booted; such a page it does not use again."""
    try:
        return bool(int((root / "proc/sys/kernel/tainted").read_text()) & _TAINT_BAD_PAGE)
    except FileNotFoundError:
        return False


def kernel_release(*, root: Path = ROOT) -> str:
    """Return the running kernel's release, as ``uname -r`` says it."""
    return (root / "proc/sys/kernel/osrelease").read_text().strip()


def uptime() -> float:
    """Return the seconds since this boot, also those that the host slept: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id(*, root: Path = ROOT) -> str:
    """Return the identity of this boot: what was taken from the host under another one is gone."""
    return (root / "proc/sys/kernel/random/boot_id").read_text().strip()


def mounts(*, root: Path = ROOT) -> tuple[Mount, ...]:
    """Return the mounts of our mount namespace, in the order they were made."""
    if root == ROOT:
        return _mount_table.read()
    return _parse_mounts((root / "proc/self/mountinfo").read_bytes())


class _MountTable:
    """The mounts of our mount namespace, read again only when they changed.

    The kernel then lets its file poll as an error: proc_pid_mountinfo(5).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._namespace: tuple[int, str] | None = None
        self._file: BinaryIO | None = None
        self._changed = select.poll()
        self._mounts: tuple[Mount, ...] = ()
        self._uppermost: dict[str, Mount] = {}

    def at(self, path: str) -> Mount | None:
        self.read()
        return self._uppermost.get(path)

    def read(self) -> tuple[Mount, ...]:
        with self._lock:
            # a child shares the open file with its parent, and the file stays with the namespace it was opened in
            namespace = os.getpid(), os.readlink("/proc/thread-self/ns/mnt")  # noqa: PTH115 -- asked very often
            if namespace != self._namespace:
                self._file = Path("/proc/thread-self/mountinfo").open("rb", buffering=0)  # noqa: SIM115 -- stays open
                self._changed = select.poll()
                self._changed.register(self._file, select.POLLPRI)
                self._namespace = namespace
            elif not self._changed.poll(0):
                return self._mounts
            assert self._file is not None  # noqa: S101 -- opened with the namespace
            self._file.seek(0)
            self._mounts = _parse_mounts(self._file.read())
            self._uppermost = {mount.path: mount for mount in self._mounts}
            return self._mounts


_mount_table = _MountTable()


def _parse_mounts(table: bytes) -> tuple[Mount, ...]:
    # bytes: paths need not be UTF-8, nor free of what Python takes for an end of line
    return tuple(map(_mount, os.fsdecode(table).rstrip("\n").split("\n")))


def _mount(line: str) -> Mount:
    # id parent major:minor root path options [optional fields] - fstype source super-options
    left, _, right = line.partition(" - ")
    _, _, device, subtree, path, _ = left.split(" ")[:6]
    fstype, source, options = right.split(" ")[:3]
    major, minor = map(int, device.split(":"))
    return Mount(os.makedev(major, minor), _unescape(subtree), _unescape(path), fstype, _unescape(source), options)


def mount_at(path: Path, *, root: Path = ROOT) -> Mount | None:
    """Return what is mounted at ``path``, the uppermost where there are several; ``None`` when nothing is."""
    if root == ROOT:
        return _mount_table.at(str(path))
    return {mount.path: mount for mount in mounts(root=root)}.get(str(path))


def _unescape(text: str) -> str:
    # the kernel writes space, tab, newline and backslash as \040, \011, \012, \134 (fs/proc_namespace.c, mangle)
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def processes(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of all processes, lowest first."""
    return tuple(sorted(int(path.name) for path in (root / "proc").iterdir() if path.name.isdecimal()))


def process_name(pid: int, *, root: Path = ROOT) -> str:
    """Return the command name of a process, ``""`` when it is gone."""
    try:
        return (root / f"proc/{pid}/comm").read_text("utf-8", "replace").rstrip("\n")
    except _GONE:
        return ""


def mappings(pid: int, *, of: Collection[tuple[int, int]] | None = None, root: Path = ROOT) -> Iterator[Mapping]:
    """Return what a process maps; nothing when it is gone or is a kernel thread.

    :param of: Files (device, inode): nothing else is read of a QEMU's some hundreds of lines than theirs.
    """
    try:
        lines = (root / f"proc/{pid}/maps").read_bytes().rstrip(b"\n").split(b"\n")
    except _GONE:
        return
    if of is not None:
        # as show_vma_header_prefix() in fs/proc/task_mmu.c writes them; what a file is called may hold that, too
        marks = [f" {os.major(device):02x}:{os.minor(device):02x} {inode}".encode() for device, inode in of]
        for area in _parsed(line for line in lines if any(mark in line for mark in marks)):
            if (area.device, area.inode) in of:
                yield area
        return
    yield from _parsed(filter(None, lines))


def _parsed(lines: Iterable[bytes]) -> Iterator[Mapping]:
    for line in lines:
        addresses, perms, offset, device, inode = line.split(None, 5)[:5]
        start, end = addresses.split(b"-")
        major, minor = device.split(b":")
        number = os.makedev(int(major, 16), int(minor, 16))
        yield Mapping(int(start, 16), int(end, 16), perms.decode(), int(offset, 16), number, int(inode))


def processes_mapping(device: int, inode: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of the processes that map a file, in whatever mount namespace and under whatever path."""

    def maps(pid: int) -> bool:
        return any(mappings(pid, of={(device, inode)}, root=root))

    return tuple(pid for pid, found in each(maps, processes(root=root)) if found)


def processes_using(device: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the PIDs of the processes that keep a file system busy: by a mapping, an open file or their cwd."""

    def uses(pid: int) -> bool:
        return _opens_on(pid, device, root) or any(area.device == device for area in mappings(pid, root=root))

    return tuple(pid for pid, found in each(uses, processes(root=root)) if found)


def _opens_on(pid: int, device: int, root: Path) -> bool:
    base = root / f"proc/{pid}"
    try:
        names = [base / "cwd", base / "root", *(base / "fd").iterdir()]
    except _GONE:
        return False
    for name in names:
        try:
            if name.stat().st_dev == device:
                return True
        except OSError:  # closed meanwhile, or a file that cannot be looked at (a kernel thread's cwd)
            continue
    return False


def libvirt_runs(run_dir: Path, *, root: Path = ROOT) -> bool:
    """Tell whether a libvirtd or virtqemud runs, without connecting: that would start one by its systemd socket.

    Its QEMU driver writes a process id for as long as it lives (``qemuStateInitialize`` in libvirt's
    ``qemu_driver.c``).

    :param run_dir: libvirt's for QEMU, ``/run/libvirt/qemu``.
    """
    try:
        pid = int((run_dir / "driver.pid").read_text("ascii"))
    except (OSError, ValueError):
        return False
    return process_name(pid, root=root) in {"libvirtd", "virtqemud"}


def find_qemu(run_dir: Path, name: str, uuid: str, *, root: Path = ROOT) -> int | None:
    """Return the PID of a domain's QEMU: by libvirt's PID file in ``run_dir``, else by ``-uuid``; or ``None``.

    The PID file counts only when that process says it is this domain: PIDs are used again. A name that libvirt
    would not take, found on a command line, leads to no file: it might lead anywhere, also to what never ends.
    """
    try:
        pid = 0 if "/" in name else int((run_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):  # which NUL in the name is, too
        pid = 0
    if pid and _is_qemu_of(pid, uuid, root):
        return pid

    def is_it(pid: int) -> bool:
        return _is_qemu_of(pid, uuid, root)

    return next((pid for pid, found in each(is_it, processes(root=root)) if found), None)


def qemu_pid(run_dir: Path, name: str) -> int | None:
    """Return the PID that libvirt wrote down for a domain's QEMU; what that process says of itself is not asked.

    :param run_dir: libvirt's for QEMU, root's own.
    """
    try:
        return int((run_dir / f"{name}.pid").read_text("ascii"))
    except (OSError, ValueError):
        return None


def _is_qemu_of(pid: int, uuid: str, root: Path) -> bool:
    return _options(pid, root).get(b"-uuid", b"").lower() == uuid.lower().encode()


def _options(pid: int, root: Path) -> dict[bytes, bytes]:
    """Return the options of a QEMU with what follows each, the first of each kind: libvirt's own come first.

    What a domain adds with ``<qemu:arg>``, maybe another's UUID, comes last (``qemuBuildCommandLine``).
    """
    try:
        arguments = (root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")
    except _GONE:
        return {}
    return dict(reversed([*itertools.pairwise(arguments)]))


def waits_for_guest(pid: int, *, root: Path = ROOT) -> bool:
    """Tell whether a QEMU was started to take in a guest, by migration or from a file."""
    try:
        return b"-incoming" in (root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")
    except _GONE:
        return False


def qemu_domain(pid: int, *, root: Path = ROOT) -> tuple[str, str] | None:
    """Return UUID and name of the domain that a QEMU runs, from its ``-uuid`` and ``-name guest=…``; else ``None``.

    libvirt writes a comma in a name as two (``qemuBuildNameCommandLine``). Any process may say anything here: what
    is no UUID counts as no domain, and a name that libvirt would not take is not taken, or cut.
    """
    options = _options(pid, root)
    name = re.match(r"guest=((?:[^,]|,,)*)", options.get(b"-name", b"").decode("utf-8", "replace"))
    uuid = options.get(b"-uuid", b"").decode("ascii", "replace").lower()
    if name is None or not _UUID.fullmatch(uuid):
        return None
    said = name[1].replace(",,", ",")
    return uuid, uuid if "/" in said or "\n" in said else said[:_LONGEST_NAME]


def bytes_by_node(pid: int, device: int, inode: int, *, root: Path = ROOT) -> dict[int, int]:
    """Return how much of a file a process has mapped and present on each node, from ``/proc/PID/numa_maps``."""
    starts = {area.start for area in mappings(pid, of={(device, inode)}, root=root)}
    found: dict[int, int] = {}
    try:
        lines = (root / f"proc/{pid}/numa_maps").read_text("utf-8", "replace").splitlines()
    except _GONE:
        return found
    for line in lines:
        page_size = re.search(r" kernelpagesize_kB=(\d+)", line)
        if page_size is None or int(line.split(" ", 1)[0], 16) not in starts:
            continue
        for node, pages in re.findall(r" N(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(pages) * int(page_size[1]) * 1024
    return found


def set_huge_pages(page_size: int, node: int, pages: int, *, root: Path = ROOT) -> None:
    """Ask the kernel for so many persistent huge pages on a node; how many it has then is read back.

    Getting fewer is no error to the kernel (``mm/hugetlb.c``, ``set_max_huge_pages``).

    :raise OSError: When the kernel refuses altogether.
    """
    (_huge_pages_dir(page_size, node, root) / "nr_hugepages").write_text(f"{pages}\n")


def set_hvo(on: bool, *, root: Path = ROOT) -> None:
    """Switch HVO for huge pages taken from now on.

    :raise OSError: When the kernel has none, or refuses.
    """
    (root / _HVO).write_text("1\n" if on else "0\n")
