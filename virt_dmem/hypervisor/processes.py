# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of libvirt and QEMU, found without a connection: by PID files and command lines.

A process can keep its ``cmdline`` from being read, for ever: functions that look at one are for worker threads.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from virt_dmem.host.kernel import ROOT
from virt_dmem.host.processes import _GONE, process_name, processes
from virt_dmem.stuck_threads import each

__all__ = ["libvirt_runs", "find_qemu", "qemu_pid", "waits_for_guest", "qemu_domain"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST_NAME = 251
"""libvirt has a file ``NAME.xml`` of each domain, and file names end at 255 bytes."""


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
