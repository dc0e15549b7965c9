# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and set the huge pages of the host and its nodes, and HVO, which frees their struct pages.

Sizes are bytes, except where a name says pages. ``root`` is the directory that stands for ``/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virt_dmem.host.kernel import ROOT

__all__ = [
    "HugePages",
    "sizes",
    "counters",
    "overcommit",
    "number_files",
    "hvo",
    "why_no_hvo",
    "set_persistent",
    "set_hvo",
    "compact",
]

_HVO = "proc/sys/vm/hugetlb_optimize_vmemmap"


@dataclass(frozen=True)
class HugePages:
    """Huge pages of one size, of one node or of the host; ``pages`` counts free, used and surplus ones.

    ``reserved`` are reserved for mappings and mounts; the kernel counts them for the whole host only, so it
    is 0 for a node.
    """

    pages: int
    free: int
    surplus: int
    reserved: int = 0

    @property
    def persistent(self) -> int:
        """The number written to ``nr_hugepages``: surplus pages are returned to the kernel when they are freed."""
        return self.pages - self.surplus


def sizes(*, root: Path = ROOT) -> tuple[int, ...]:
    """Return the huge page sizes of the kernel, smallest first; empty without hugetlb."""
    names = [path.name for path in (root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")]
    return tuple(sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) * 1024 for name in names))


def counters(page_size: int, node: int | None = None, *, root: Path = ROOT) -> HugePages:
    """Return the counters of one page size, of a node or (``None``) of the host.

    :raise OSError: When there is no such page size or node.
    """
    base = _huge_pages_dir(page_size, node, root)

    def count(name: str) -> int:
        return int((base / name).read_text())

    reserved = count("resv_hugepages") if (base / "resv_hugepages").exists() else 0
    return HugePages(count("nr_hugepages"), count("free_hugepages"), count("surplus_hugepages"), reserved)


def overcommit(page_size: int, *, root: Path = ROOT) -> int:
    """Return how many surplus pages of one size the host may have; 0 also where the kernel does not say."""
    try:
        return int((_huge_pages_dir(page_size, None, root) / "nr_overcommit_hugepages").read_text())
    except OSError:
        return 0


def number_files(*, root: Path = ROOT) -> list[Path]:
    """Return the files by which the number of huge pages, or HVO, is set: for the host, by page size, by node."""
    found = [root / "proc/sys/vm" / name for name in ("nr_hugepages", "nr_hugepages_mempolicy")]
    for directory in ("sys/kernel/mm/hugepages", "sys/devices/system/node/node*/hugepages"):
        found += sorted(root.glob(f"{directory}/hugepages-*kB/nr_hugepages*"))
    return [*found, root / _HVO]


def _huge_pages_dir(page_size: int, node: int | None, root: Path) -> Path:
    name = f"hugepages-{page_size // 1024}kB"
    of_nodes = root / "sys/devices/system/node"
    if node is None or not of_nodes.exists():
        return root / "sys/kernel/mm/hugepages" / name
    return of_nodes / f"node{node}/hugepages" / name


def hvo(*, root: Path = ROOT) -> bool | None:
    """Return whether HVO applies to huge pages allocated from now on; ``None`` where the kernel has none."""
    try:
        return (root / _HVO).read_text().strip() != "0"
    except FileNotFoundError:
        return None


def why_no_hvo(architecture: str) -> str:
    """Return why a kernel has no HVO, a sentence without its end."""
    if architecture == "aarch64":
        return "Linux has no HVO on arm64 (none up to 7.3 has)"
    return "this kernel has no HVO (CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP)"


def set_persistent(page_size: int, node: int, pages: int, *, root: Path = ROOT) -> None:
    """Set the number of persistent huge pages of a node; read back how many it has then.

    The kernel reports no error when it allocates fewer (``mm/hugetlb.c``, ``set_max_huge_pages``).

    :raise OSError: When the kernel rejects the number.
    """
    (_huge_pages_dir(page_size, node, root) / "nr_hugepages").write_text(f"{pages}\n")


def set_hvo(on: bool, *, root: Path = ROOT) -> None:
    """Switch HVO for huge pages allocated from now on.

    :raise OSError: When the kernel has none, or rejects it.
    """
    (root / _HVO).write_text("1\n" if on else "0\n")


def compact(node: int, *, root: Path = ROOT) -> None:
    """Have the kernel move pages of a node together, which makes room for huge pages; may take seconds.

    Where the kernel has no such file for the node (no NUMA) all memory is compacted; nothing is done where it has
    none at all (CONFIG_COMPACTION).

    :raise OSError: When the kernel rejects it.
    """
    of_node = root / f"sys/devices/system/node/node{node}/compact"
    for path in (of_node, root / "proc/sys/vm/compact_memory"):
        if path.exists():
            path.write_text("1\n")
            return
