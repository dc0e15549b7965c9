# SPDX-License-Identifier: GPL-2.0-or-later
"""What a domain XML says about the memory of its domain.

Only reading, and no look at the host: the same bytes always give the same answer. ``rewrite.py`` changes XML.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from lxml import etree

from virt_dmem.errors import DomainRefused, DomainXmlInvalid
from virt_dmem.secure_xml import XmlRefused, parse_xml
from virt_dmem.units import KIB, MIB, round_up

__all__ = [
    "NAMESPACE",
    "Cell",
    "DomainMemory",
    "read_domain",
    "read_uuid",
    "is_managed",
    "require_whole_pages",
    "parse_domain",
    "refuse_unsupported",
    "boot_cells",
    "guest_cells",
    "find_child",
    "find_request",
    "is_rewritten",
    "POOL_NAME",
]

NAMESPACE = "https://virt-dmem.dev/xmlns/domain/1.0"

POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)

_DUMPXML = "Give what 'virsh dumpxml --inactive --security-info DOMAIN' prints."
_MAX_NODE = 1023  # the kernel's largest CONFIG_NODES_SHIFT is 10
_POLICIES = ("strict", "preferred", "interleave", "restrictive")

# QEMU's MachineClass.default_ram_id, by what arch and machine type begin with: the id that libvirt gives to the
# one memory backend of a guest without NUMA cells. x86 asked from QEMU 7.2 (query-machines), the others from
# hw/{arm,ppc,s390x,riscv,loongarch}.
_DEFAULT_RAM_IDS = (
    ("x86_64 i686", "pc q35 isapc", "pc.ram"),
    ("x86_64 i686", "microvm", "microvm.ram"),
    ("aarch64 armv7l armv6l", "virt", "mach-virt.ram"),
    ("aarch64", "sbsa-ref", "sbsa-ref.ram"),
    ("ppc64 ppc64le", "pseries", "ppc_spapr.ram"),
    ("ppc64 ppc64le", "powernv powernv8 powernv9 powernv10", "pnv.ram"),
    ("s390x", "s390-ccw-virtio", "s390.ram"),
    ("riscv64 riscv32", "virt", "riscv_virt_board.ram"),
    ("loongarch64", "virt", "loongarch.ram"),
)


@dataclass(frozen=True)
class Cell:
    """One memory backend that the guest has when it starts."""

    alias: str
    """QEMU's object id and the file's name: ``ram-node0`` …, or the machine's default RAM id (``pc.ram``)."""
    cell: int | None
    """The guest NUMA cell; None in a guest without cells."""
    size_bytes: int
    """What QEMU will be given: rounded as libvirt does at start."""
    host_nodes: tuple[int, ...]
    """The host nodes of ``<numatune>``, ascending; empty: anywhere."""
    policy: str
    """``strict``, ``preferred``, ``interleave``, ``restrictive``, or empty where ``<numatune>`` is silent."""


@dataclass(frozen=True)
class DomainMemory:
    """The memory of one domain at start, and how far it is ours."""

    uuid: str
    """In canonical form, whatever form the XML has."""
    name: str
    pool: str
    """Empty: the default pool."""
    cells: tuple[Cell, ...]
    managed: bool
    """The domain asks for pool memory: our ``<dmem:memory>`` is in its metadata."""
    applied: bool
    """Its memory backends are shared files without prefaulting, and not ``<hugepages>``."""
    dac_user: str | None
    """Of the dac label as libvirt wrote it: ``+64055`` is a number, anything else may be a name."""
    dac_group: str | None
    selinux_imagelabel: str | None
    domain_id: int | None
    """Only in the XML of a running or starting domain."""

    @property
    def total_bytes(self) -> int:
        """All memory at start."""
        return sum(cell.size_bytes for cell in self.cells)


def read_domain(xml: bytes) -> DomainMemory:
    """Return what ``xml``, as libvirt printed it (persistent, live, or on a hook's stdin), says.

    :raise DomainXmlInvalid: When it is no domain XML, or none that came from libvirt.
    :raise DomainRefused: When memory of such a domain cannot come from a pool.
    """
    root = parse_domain(xml)
    refuse_unsupported(root)
    request, cells = find_request(root), boot_cells(root)
    if not cells[0].alias:
        raise DomainXmlInvalid("The domain XML does not say its architecture and machine type.", hint=_DUMPXML)
    dac_user, dac_group = _dac_label(root)
    return DomainMemory(
        uuid=_uuid(root),
        name=_name(root),
        pool=_pool(request),
        cells=cells,
        managed=request is not None,
        applied=is_rewritten(root) and request is not None,
        dac_user=dac_user,
        dac_group=dac_group,
        selinux_imagelabel=_label(root, "selinux", "imagelabel"),
        domain_id=_number(root.get("id"), "domain id") if root.get("id") else None,
    )


def is_managed(xml: bytes) -> bool:
    """Whether the domain asks for pool memory; costs one scan of the bytes where it does not.

    :raise DomainXmlInvalid: When our namespace occurs in something that is no domain XML.
    """
    return NAMESPACE.encode() in xml and find_request(parse_domain(xml)) is not None


def read_uuid(xml: bytes) -> str:
    """Return whose domain XML it is, also of a domain that ``read_domain`` would refuse.

    :raise DomainXmlInvalid: When it is no domain XML, or has no UUID.
    """
    return _uuid(parse_domain(xml))


def require_whole_pages(name: str, cells: tuple[Cell, ...], page_size: int) -> None:
    """Refuse the domain ``name`` unless each of its memory backends is a multiple of ``page_size`` bytes.

    :raise DomainRefused: Names the first that is not, and the nearest sizes that would do.
    """
    for cell in cells:
        below, above = cell.size_bytes // page_size * page_size, round_up(cell.size_bytes, page_size)
        if below != above:
            nearest = f"{_exact(below)} or {_exact(above)}" if below else _exact(above)
            raise DomainRefused(
                f"{cell.alias or 'The memory'} of domain {name!r} has {_exact(cell.size_bytes)}, which is no "
                f"multiple of the page size {_exact(page_size)}.",
                hint=f"Give it {nearest}, or use a pool with smaller pages.",
            )


# Below: the pieces, also for rewrite.py.


def parse_domain(xml: bytes) -> etree._Element:
    """Return the ``<domain>`` element.

    :raise DomainXmlInvalid: When ``xml`` is not safely readable XML, or its root is another element.
    """
    try:
        root = parse_xml(xml).getroot()
    except XmlRefused as refusal:
        raise DomainXmlInvalid(f"The domain XML cannot be read: {refusal}.", hint=_DUMPXML) from refusal
    if root.tag != "domain":
        raise DomainXmlInvalid(f"The XML is about {str(root.tag)!r}, not 'domain'.", hint=_DUMPXML)
    return root


def find_child(parent: etree._Element | None, *path: str) -> etree._Element | None:
    """Return the element at ``path`` below ``parent``, None where there is none.

    :raise DomainXmlInvalid: When one of the steps is there twice: libvirt would not take that either.
    """
    for step in path:
        found = [] if parent is None else parent.findall(step)
        if len(found) > 1:
            raise DomainXmlInvalid(
                f"The domain XML has {len(found)} elements '{etree.QName(step).localname}' where one may be.",
                hint=_DUMPXML,
            )
        parent = found[0] if found else None
    return parent


def find_request(root: etree._Element) -> etree._Element | None:
    """Return our ``<dmem:memory>`` in the domain's metadata, by which it asks for pool memory."""
    return find_child(root, "metadata", f"{{{NAMESPACE}}}memory")


def is_rewritten(root: etree._Element) -> bool:
    """Whether libvirt would make all boot memory shared files that it does not prefault."""
    backing = find_child(root, "memoryBacking")

    def value(element: str, attribute: str) -> str | None:
        found = find_child(backing, element)
        return None if found is None else found.get(attribute)

    return (
        find_child(backing, "hugepages") is None
        and value("source", "type") == "file"
        and value("access", "mode") == "shared"
        and value("allocation", "mode") == "ondemand"
        and all(cell.get("memAccess", "shared") == "shared" for cell in guest_cells(root).values())
    )


def guest_cells(root: etree._Element) -> dict[int, etree._Element]:
    """Return the ``<cell>`` elements of the guest's NUMA topology by their ids, ascending.

    :raise DomainXmlInvalid: When ids are missing in between or doubled; libvirt takes 0 … n-1 only.
    """
    numa = find_child(root, "cpu", "numa")
    cells = [] if numa is None else numa.findall("cell")
    by_id = {_number(cell.get("id", str(index)), "cell id"): cell for index, cell in enumerate(cells)}
    if sorted(by_id) != list(range(len(cells))):
        raise DomainXmlInvalid("The ids of the guest's NUMA cells do not count from 0 up.", hint=_DUMPXML)
    return dict(sorted(by_id.items()))


def boot_cells(root: etree._Element) -> tuple[Cell, ...]:
    """Return the memory backends the guest has when it starts, without its memory devices.

    The alias is empty where the name depends on a machine type that only libvirt will fill in.

    :raise DomainXmlInvalid: When sizes are missing or unreadable.
    :raise DomainRefused: When it has no cells and a machine type whose RAM id we do not know.
    """
    align = 256 * MIB if _machine(root)[0].startswith("ppc64") else MIB  # qemuDomainAlignMemorySizes()
    cells = guest_cells(root)
    if cells:
        sizes = {cell: round_up(_size(e.get("memory"), e.get("unit")), align) for cell, e in cells.items()}
        found = [Cell(f"ram-node{cell}", cell, size, *_host_nodes(root, cell)) for cell, size in sizes.items()]
    else:
        size_bytes = round_up(_initial_memory(root), align)
        found = [Cell(_default_ram_id(root), None, size_bytes, *_host_nodes(root, None))]
    if any(cell.size_bytes <= 0 for cell in found):
        raise DomainXmlInvalid("The domain XML gives the domain or one of its cells no memory.", hint=_DUMPXML)
    return tuple(found)


def refuse_unsupported(root: etree._Element) -> None:
    """Refuse what cannot have memory from a pool.

    :raise DomainRefused: With what stands against it and what would have to change.
    """
    if root.get("type") not in ("kvm", "qemu"):
        raise DomainRefused(
            f"The domain is of type {root.get('type')!r}, not 'kvm' or 'qemu'.",
            hint="Only QEMU can have its memory from a pool; leave this domain as it is.",
        )
    security = find_child(root, "launchSecurity")
    if security is not None:
        raise DomainRefused(
            f"The domain has encrypted or protected memory (launchSecurity {security.get('type', '')!r}).",
            hint="Memory that the host may not share cannot come from a pool; leave this domain as it is.",
        )
    for device in root.iterfind("devices/memory"):
        if device.get("model") in ("dimm", "virtio-mem"):
            raise DomainRefused(
                f"The domain has a memory device of model {device.get('model')!r}, and memory devices cannot be "
                "placed in a pool yet.",
                hint="Give the domain that memory at boot instead, and remove the memory device.",
            )
    if _placement_is_auto(root):
        raise DomainRefused(
            "The domain's host nodes are chosen by numad (placement='auto'), which decides only after the memory "
            "has been prepared.",
            hint="Name the nodes in <numatune>, or remove placement='auto' and let the plan choose them.",
        )
    _pool(find_request(root))


def _placement_is_auto(root: etree._Element) -> bool:
    """As libvirt decides it: virDomainNumatuneParseXML() and virDomainNumatuneSet()."""
    memory = find_child(root, "numatune", "memory")
    vcpu = find_child(root, "vcpu")
    vcpu_is_auto = vcpu is not None and vcpu.get("placement") == "auto"
    if memory is None:
        return vcpu_is_auto
    if memory.get("placement") is None:
        return vcpu_is_auto and memory.get("nodeset") is None
    return memory.get("placement") == "auto"


def _host_nodes(root: etree._Element, cell: int | None) -> tuple[tuple[int, ...], str]:
    numatune = find_child(root, "numatune")
    element = find_child(numatune, "memory")
    for memnode in [] if numatune is None or cell is None else numatune.findall("memnode"):
        if _number(memnode.get("cellid"), "memnode cellid") == cell:
            element = memnode
    if element is None:
        return (), ""
    policy = element.get("mode", "strict")
    if policy not in _POLICIES:
        raise DomainXmlInvalid(f"The domain XML has an unknown numatune mode {policy!r}.", hint=_DUMPXML)
    return _nodeset(element.get("nodeset", "")), policy


def _nodeset(text: str) -> tuple[int, ...]:
    """``0-3,^2,7``: later parts win, as in virBitmapParse()."""
    nodes: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\^?)\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?", part, re.ASCII)
        first, last = (int(match[2]), int(match[3] or match[2])) if match else (1, 0)
        if match is None or not first <= last <= _MAX_NODE or (match[1] and match[3]):
            raise DomainXmlInvalid(f"The domain XML has an unreadable nodeset {text!r}.", hint=_DUMPXML)
        named = range(first, last + 1)
        nodes = nodes.difference(named) if match[1] else nodes.union(named)
    return tuple(sorted(nodes))


def _initial_memory(root: etree._Element) -> int:
    """Bytes of ``<memory>`` less those of all memory devices, as virDomainDefGetMemoryInitial()."""
    memory = find_child(root, "memory")
    if memory is None:
        raise DomainXmlInvalid("The domain XML has no <memory>.", hint=_DUMPXML)
    devices = [find_child(device, "target", "size") for device in root.iterfind("devices/memory")]
    plugged = sum(_size(size.text, size.get("unit")) for size in devices if size is not None)
    return _size(memory.text, memory.get("unit")) - plugged


def _size(text: str | None, unit: str | None) -> int:
    """Bytes, in whole KiB rounded up; units as virScaleInteger() reads them, KiB where none is given."""
    value, suffix = _number(text, "memory size"), (unit or "KiB").lower()
    if suffix in ("b", "byte", "bytes"):
        factor = 1
    elif match := re.fullmatch(r"([kmgtpe])(|b|ib)", suffix):
        factor = (1000 if match[2] == "b" else 1024) ** ("kmgtpe".index(match[1]) + 1)
    else:
        raise DomainXmlInvalid(f"The domain XML has an unknown unit {unit!r}.", hint=_DUMPXML)
    return round_up(value * factor, KIB)


def _number(text: str | None, what: str) -> int:
    if text is None or not re.fullmatch(r"\d{1,20}", text.strip(), re.ASCII):
        raise DomainXmlInvalid(f"The domain XML has {text!r} as {what}.", hint=_DUMPXML)
    return int(text)


def _machine(root: etree._Element) -> tuple[str, str]:
    os_type = find_child(root, "os", "type")
    return ("", "") if os_type is None else (os_type.get("arch", ""), os_type.get("machine", ""))


def _default_ram_id(root: etree._Element) -> str:
    arch, machine = _machine(root)
    if not arch or not machine:
        return ""
    for arches, machines, ram_id in _DEFAULT_RAM_IDS:
        if arch in arches.split() and any(machine == m or machine.startswith(f"{m}-") for m in machines.split()):
            return ram_id
    raise DomainRefused(
        f"The name of the boot memory of a machine {machine!r} on {arch!r} is not known.",
        hint="Give the guest one NUMA cell that holds all its memory: its name does not depend on the machine.",
    )


def _name(root: etree._Element) -> str:
    name = root.findtext("name") or ""
    if not name.strip() or "/" in name or "\n" in name:
        raise DomainXmlInvalid(f"The domain XML has the impossible name {name!r}.", hint=_DUMPXML)
    return name


def _uuid(root: etree._Element) -> str:
    text = root.findtext("uuid") or ""
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise DomainXmlInvalid(f"The domain XML has the UUID {text!r}.", hint=_DUMPXML) from None


def _pool(request: etree._Element | None) -> str:
    pool = "" if request is None else request.get("pool", "")
    if pool and not POOL_NAME.fullmatch(pool):
        raise DomainRefused(
            f"The domain asks for memory of a pool {pool!r}, which is no possible name.",
            hint="Name one that 'virt-dmem pool list' shows, or none for the default pool.",
        )
    return pool


def _label(root: etree._Element, model: str, kind: str) -> str | None:
    for label in root.iterfind("seclabel"):
        if label.get("model") == model:
            return label.findtext(kind)
    return None


def _dac_label(root: etree._Element) -> tuple[str | None, str | None]:
    user, separator, group = (_label(root, "dac", "label") or "").partition(":")
    return (user, group) if separator and user and group else (None, None)


def _exact(size_bytes: int) -> str:
    for factor, unit in ((MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} B"
