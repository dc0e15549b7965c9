# SPDX-License-Identifier: GPL-2.0-or-later
"""Find processes of libvirt and QEMU without a connection: by PID files and command lines.

A process can block reads of its ``cmdline`` without limit: call functions that read one from worker threads only.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from virt_dmem.domain_xml.fields import LONGEST_NAME
from virt_dmem.host.kernel import ROOT
from virt_dmem.host.processes import GONE, process_name, processes, start_ticks
from virt_dmem.runtime.stuck_threads import each

__all__ = ["libvirt_runs", "libvirt_process", "find_qemu", "qemu_pid", "waits_for_guest", "qemu_domain"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def libvirt_runs(run_dir: Path, *, root: Path = ROOT) -> bool:
    """Return whether a libvirtd or virtqemud runs, without connecting: that could start one by its socket.

    Its QEMU driver has a PID file for as long as it lives (``qemuStateInitialize`` in libvirt's
    ``qemu_driver.c``).

    :param run_dir: libvirt's for QEMU, ``/run/libvirt/qemu``.
    """
    return _driver_pid(run_dir, root) is not None


def _driver_pid(run_dir: Path, root: Path) -> int | None:
    try:
        pid = int((run_dir / "driver.pid").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return pid if process_name(pid, root=root) in {"libvirtd", "virtqemud"} else None


def libvirt_process(run_dir: Path, *, root: Path = ROOT) -> tuple[int, int] | None:
    """Return PID and ``start_ticks`` of the libvirtd or virtqemud that runs; ``None`` without one.

    :param run_dir: As for ``libvirt_runs``.
    """
    pid = _driver_pid(run_dir, root)
    ticks = start_ticks(pid, root=root) if pid else None
    return (pid, ticks) if pid and ticks is not None else None


def find_qemu(run_dir: Path, name: str, uuid: str, *, root: Path = ROOT) -> int | None:
    """Return the PID of a domain's QEMU: by libvirt's PID file in ``run_dir``, else by ``-uuid``; or ``None``.

    The PID file counts only when that process's command line has the domain's UUID: PIDs are reused. A name that
    libvirt would not accept, found on a command line, is not used as a path: it could lead anywhere.
    """
    try:
        pid = 0 if "/" in name else int((run_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):  # ValueError: also NUL in the name
        pid = 0
    if pid and _is_qemu_of(pid, uuid, root):
        return pid

    def is_it(pid: int) -> bool:
        return _is_qemu_of(pid, uuid, root)

    return next((pid for pid, found in each(is_it, processes(root=root)) if found), None)


def qemu_pid(run_dir: Path, name: str) -> int | None:
    """Return the PID in libvirt's PID file of a domain's QEMU, without checking that process.

    :param run_dir: libvirt's for QEMU, writable by root only.
    """
    try:
        return int((run_dir / f"{name}.pid").read_text("ascii"))
    except (OSError, ValueError):
        return None


def _is_qemu_of(pid: int, uuid: str, root: Path) -> bool:
    return _options(pid, root).get(b"-uuid", b"").lower() == uuid.lower().encode()


def _options(pid: int, root: Path) -> dict[bytes, bytes]:
    """Return each option of a QEMU with the next argument; of repeated options the first, which is libvirt's.

    Options that a domain adds with ``<qemu:arg>``, maybe with another's UUID, come last (``qemuBuildCommandLine``).
    """
    try:
        arguments = (root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")
    except GONE:
        return {}
    return dict(reversed([*itertools.pairwise(arguments)]))


def waits_for_guest(pid: int, *, root: Path = ROOT) -> bool:
    """Return whether a QEMU was started for an incoming migration, or to restore a file."""
    try:
        return b"-incoming" in (root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")
    except GONE:
        return False


def qemu_domain(pid: int, *, root: Path = ROOT) -> tuple[str, str] | None:
    """Return UUID and name of a QEMU's domain, from its ``-uuid`` and ``-name guest=…``; else ``None``.

    libvirt doubles a comma in a name (``qemuBuildNameCommandLine``). Any process may have any command line: without
    a valid UUID it is no domain, and a name that libvirt would not accept is replaced or cut.
    """
    options = _options(pid, root)
    name = re.match(r"guest=((?:[^,]|,,)*)", options.get(b"-name", b"").decode("utf-8", "replace"))
    uuid = options.get(b"-uuid", b"").decode("ascii", "replace").lower()
    if name is None or not _UUID.fullmatch(uuid):
        return None
    found = name[1].replace(",,", ",")
    return uuid, uuid if "/" in found or "\n" in found else found[:LONGEST_NAME]
