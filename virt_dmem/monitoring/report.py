# SPDX-License-Identifier: GPL-2.0-or-later
"""Collect ``virt-dmem report``: what support needs for a diagnosis, without secrets.

By allow lists, not by guessing what looks like a secret: of domain XML, qemu.conf, mounts and the kernel's command
line only what is listed here is included. No guest memory is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from operator import attrgetter
from pathlib import Path
from typing import IO

import msgspec
from lxml import etree

from virt_dmem.config.schema import Config, keys
from virt_dmem.domain_xml.elements import NAMESPACE, parse_domain
from virt_dmem.errors import DmemError, UsageError
from virt_dmem.host import huge_pages, kernel, mounts, numa
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.ipc.client import Client
from virt_dmem.monitoring.checks import suite
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.os_errors import naming
from virt_dmem.text import printable
from virt_dmem.version import version_and_commit

__all__ = ["Source", "collect", "reduced", "write"]

LOG_LINES = 2000

# Of domain XML: these elements with these attributes, as far as all elements above them are here as well; text is
# kept in those marked '#'. Elements of our own namespace count by their local name, those of others not at all.
_ELEMENTS = {
    "domain": "type id",
    "name": "#",
    "uuid": "#",
    "metadata": "",
    "memory": "unit mode nodeset placement model access discard pool size #",
    "currentMemory": "unit #",
    "maxMemory": "unit slots #",
    "memoryBacking": "",
    "hugepages": "",
    "page": "size unit nodeset",
    "nosharepages": "",
    "locked": "",
    "source": "type",
    "access": "mode",
    "allocation": "mode threads",
    "discard": "",
    "memtune": "",
    "hard_limit": "unit #",
    "soft_limit": "unit #",
    "vcpu": "placement cpuset current #",
    "numatune": "",
    "memnode": "cellid mode nodeset",
    "os": "",
    "type": "arch machine #",
    "cpu": "mode check",
    "numa": "",
    "cell": "id cpus memory unit memAccess discard",
    "launchSecurity": "type",
    "devices": "",
    "memballoon": "model autodeflate freePageReporting",
    "target": "",
    "size": "unit #",
    "node": "#",
    "block": "unit #",
    "requested": "unit #",
    "current": "unit #",
    "address": "type slot base",
    "alias": "name",
    "nodemask": "#",
    "pagesize": "unit #",
    "replaced": "added elements pool",
    "device": "model size node index access",
}
_PLAIN = re.compile(r"[\w .,:^+/-]{0,100}", re.ASCII)
"""Pattern of allowed values; the name of a domain may be anything."""
_QEMU_CONF = (
    "memory_backing_dir hugetlbfs_mount user group dynamic_ownership remember_owner security_driver"
    " security_default_confined namespaces cgroup_device_acl"
)
_MEMORY_MOUNTS = ("hugetlbfs", "tmpfs", "ramfs", "dmemfs")
_CMDLINE = re.compile(
    r"(?:default_)?huge\w*=\S+|mem(?:map|block)?=\S+|dmem=\S+|numa\w*=\S+|movable\w*=\S+|kernelcore=\S+"
    r"|transparent_hugepage=\S+|cma=\S+|efi_fake_mem=\S+|nosmt\S*|kvm\S*"
)
_UNITS = ("virt-dmem*", "libvirtd*", "virtqemud*", "dev-hugepages.mount")


@dataclasses.dataclass(frozen=True)
class Source:
    """Name the host and the configuration that the report is collected from."""

    config: Config
    origins: dict[str, str]
    """The file that set each key of the configuration."""
    uri: str
    root: Path = kernel.ROOT

    def read(self, path: str) -> str:
        """Return the text of a file below ``root``."""
        return (self.root / path.lstrip("/")).read_text("utf-8", "replace")


def write(source: Source, path: Path) -> list[str]:
    """Write everything to a new archive that only this user may read; return the names of its files.

    :param path: Ends with ``.tar.gz`` or ``.tar.xz``; the rest of its name is the directory in the archive.
    :raise UsageError: When it ends otherwise, or exists, or its directory does not.
    """
    found = re.fullmatch(r"(.+)\.tar\.(gz|xz)", path.name)
    if found is None:
        raise UsageError(
            f"{path.name} does not end with .tar.gz or .tar.xz.", hint="Give the file one of these suffixes."
        )
    try:
        at = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # resolved once
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"There is no directory {path.parent}.", hint="Name another file, or create it."
        ) from error
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with naming(path.absolute()), os.fdopen(os.open(path.name, flags, 0o600, dir_fd=at), "w+b") as file:
            try:
                return _pack(source, file, found[1], found[2])
            except BaseException:
                _remove(path.name, at, os.fstat(file.fileno()))  # a partial report looks like a complete one
                raise
    except FileExistsError as error:
        raise UsageError(f"{path} exists already.", hint="Name a new file with -o.") from error
    finally:
        os.close(at)


def _remove(name: str, at: int, ours: os.stat_result) -> None:
    """Remove the file from a directory that others may change, unless it was replaced."""
    with suppress(OSError):
        found = os.stat(name, dir_fd=at, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
            os.unlink(name, dir_fd=at)


def _pack(source: Source, file: IO[bytes], directory: str, compression: str) -> list[str]:
    names = []
    open_archive = tarfile.TarFile.gzopen if compression == "gz" else tarfile.TarFile.xzopen
    with open_archive(directory, "w", fileobj=file) as archive:
        for name, content in collect(source):
            entry = tarfile.TarInfo(f"{directory}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
            names.append(name)
    return names


def collect(source: Source) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file; the reason instead of what cannot be read."""
    for name, part in _PARTS.items():
        try:
            for file, content in part(source).items():
                yield f"{name}{file}", printable(content, keep="\n\t").encode()
        except (DmemError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
            yield f"{name}{'.' if '.' in name else '/'}missing.txt", f"{printable(str(error))}\n".encode()


def reduced(xml: bytes) -> str:
    """Return a domain XML reduced to the elements and attributes listed above.

    :raise DomainXmlInvalid: When it is no domain XML.
    """
    top = _reduced(parse_domain(xml))
    assert top is not None  # noqa: S101 -- <domain> is on the list
    etree.indent(top)
    return etree.tostring(top, encoding="unicode") + "\n"


def _reduced(element: etree._Element) -> etree._Element | None:
    if not isinstance(element.tag, str):  # a comment, a processing instruction
        return None
    name = etree.QName(element)
    if name.localname not in _ELEMENTS or name.namespace not in (None, NAMESPACE):
        return None
    allowed = _ELEMENTS[name.localname].split()
    copy = etree.Element(element.tag, nsmap={"dmem": NAMESPACE} if name.namespace else None)
    for key, value in element.items():
        if key in allowed and _PLAIN.fullmatch(value):
            copy.set(key, value)
    text = (element.text or "").strip()
    if "#" in allowed and (name.localname == "name" or _PLAIN.fullmatch(text)):
        copy.text = text
    for child in element:
        kept = _reduced(child)
        if kept is not None:
            copy.append(kept)
    return copy


# The parts: each returns contents by file name


def _versions(source: Source) -> dict[str, str]:
    versions = {
        "virt-dmem": version_and_commit(),
        "python": sys.version,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "boot_id": kernel.boot_id(root=source.root),
    }
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', source.read("/etc/os-release"), re.MULTILINE))
    versions["distribution"] = release.get("PRETTY_NAME", "")
    try:
        with Hypervisor(source.uri) as hypervisor:
            versions |= hypervisor.versions()
    except DmemError as error:
        versions["libvirt"] = str(error)
    return {"": _json(versions)}


def _check(source: Source) -> dict[str, str]:
    found = [
        {"name": check.name, "status": result.status.value, "message": result.message, "hint": result.hint}
        for check, result in suite.run(Machine(source.config, source.uri, source.root))
    ]
    return {"": _json(found)}


def _daemon(source: Source) -> dict[str, str]:
    with Client(source.config.socket_path) as daemon:
        return {
            "/pools.json": _json(daemon.call("ListPools")),
            "/domains.json": _json(daemon.call("ListDomains")),
            "/alerts.json": _json(daemon.call("ListAlerts")),
            "/metrics.prom": daemon.call("ShowMetrics")["text"],
        }


def _ledger(source: Source) -> dict[str, str]:
    with closing(sqlite3.connect(f"file:{source.config.ledger_path}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")] for name in tables}  # noqa: S608
        return {"": _json({"version": database.execute("PRAGMA user_version").fetchone()[0], **rows})}


def _config(source: Source) -> dict[str, str]:
    config = {
        key: {"value": attrgetter(key)(source.config), "origin": source.origins.get(key, "default")}
        for key, _, _ in keys()
    }
    return {"": _json(msgspec.to_builtins(config))}


def _records(source: Source) -> dict[str, str]:
    files = sorted(source.config.pool_records_dir.glob("[!.]*.json"))
    return {f"/{file.name}": file.read_text("utf-8", "replace") for file in files}


def _host(source: Source) -> dict[str, str]:
    mounted = [dataclasses.asdict(mount) for mount in mounts.mounts(root=source.root)]
    huge = [*source.root.glob("sys/kernel/mm/hugepages/*/*")]
    huge += source.root.glob("sys/devices/system/node/node*/hugepages/*/*")
    counters = [file for file in sorted(huge) if file.is_file() and os.access(file, os.R_OK)]
    topology = [*sorted(source.root.glob("sys/devices/system/node/node*/distance")), source.root / "proc/buddyinfo"]
    return {
        "/meminfo": source.read("/proc/meminfo"),
        "/vmstat": source.read("/proc/vmstat"),
        "/cmdline": " ".join(_CMDLINE.findall(source.read("/proc/cmdline"))) + "\n",
        "/mounts.json": _json([mount for mount in mounted if mount["fstype"] in _MEMORY_MOUNTS]),
        "/hugepages": "".join(f"{file}: {_one_line(file)}\n" for file in counters),
        "/numa": "".join(f"{file}: {_text(file)}" for file in topology if file.exists()),
        "/nodes.json": _json([dataclasses.asdict(node) for node in numa.nodes(root=source.root)]),
        "/hvo": f"{huge_pages.hvo(root=source.root)}\n",
    }


def _libvirt(source: Source) -> dict[str, str]:
    names = "|".join(_QEMU_CONF.split())
    settings = re.findall(
        rf"^\s*(?:{names})\s*=[^\n]*", source.read(source.config.libvirt.config_file), re.MULTILINE
    )
    hooks = []
    for file in sorted((source.root / "etc/libvirt/hooks").rglob("*")):
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            hooks.append({"path": str(file), "mode": f"{file.stat().st_mode & 0o7777:04o}", "sha256": digest})
    return {"/qemu.conf": "\n".join(settings) + "\n", "/hooks.json": _json(hooks)}


def _domains(source: Source) -> dict[str, str]:
    files = {}
    with Hypervisor(source.uri, rules=source.config.adopt) as hypervisor:
        for domain in hypervisor.domains():
            if not (domain.managed or domain.adopted):
                continue
            if live := hypervisor.live_xml(domain.uuid):
                files[f"/{domain.uuid}-live.xml"] = reduced(live)
            try:
                files[f"/{domain.uuid}.xml"] = reduced(hypervisor.inactive_xml(domain.uuid, secure=False))
            except DmemError as error:  # it is transient, or went away
                files[f"/{domain.uuid}.txt"] = f"{error}\n"
    return files


def _systemd(_source: Source) -> dict[str, str]:
    properties = "--property=Id,LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp"
    ours = ["--unit=virt-dmemd.service", "--unit=virt-dmemd.socket", "--unit=virt-dmem-pool@*"]
    return {
        "/units.txt": _output("systemctl", "show", properties, "--all", *_UNITS),
        "/journal.txt": _output("journalctl", "--no-pager", "--output=short-iso", f"--lines={LOG_LINES}", *ours),
    }


_PARTS: dict[str, Callable[[Source], dict[str, str]]] = {
    "versions.json": _versions,
    "check.json": _check,
    "config.json": _config,
    "ledger.json": _ledger,
    "daemon": _daemon,
    "pools": _records,
    "host": _host,
    "libvirt": _libvirt,
    "domains": _domains,
    "systemd": _systemd,
}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace")


def _one_line(file: Path) -> str:
    try:
        return _text(file).strip()
    except OSError as error:
        return error.strerror or "?"


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    return done.stdout + done.stderr
