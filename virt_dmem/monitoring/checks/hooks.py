# SPDX-License-Identifier: GPL-2.0-or-later
"""Check libvirt's hook: its script, its program, and whether libvirtd calls it."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.errors import DaemonUnreachable, DomainRefused, PermissionRefused
from virt_dmem.host import processes
from virt_dmem.host.confinement import apparmor
from virt_dmem.host.processes import CLOCK_TICKS
from virt_dmem.host.unit_state import reloaded_at
from virt_dmem.ipc.client import Client
from virt_dmem.monitoring.checks.base import INSTALL, Machine, text_of
from virt_dmem.native.programs import HOOK_CLIENT
from virt_dmem.pools.backends.checks import Result, failed, passed, warned

__all__ = ["hook", "hook_client", "hook_in_force", "other_hooks", "CLOCK_TICKS"]

HOOKS = Path("/etc/libvirt/hooks")
"""SYSCONFDIR "/libvirt/hooks" of libvirt's build (LIBVIRT_HOOK_DIR in its src/util/virhook.c)."""
OUR_HOOK = "50-virt-dmem"
LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
BTIME_SECONDS = 2
"""Error of a process's start time: ``btime`` of /proc/stat has whole seconds, and may step by one."""
_RELOADED = Path("/run/virt-dmem/libvirt-reloaded")
_CLIENT = "@PREFIX@/bin/virt-dmem-hook"
"""The program that the hook runs, as named in the hook before it is installed."""


def hook(machine: Machine) -> Result:
    """Check that the hook is a regular, executable file of this version."""
    installed = machine.path(HOOKS / "qemu.d" / OUR_HOOK)
    try:
        status = installed.lstat()
    except FileNotFoundError:
        return failed(f"{HOOKS}/qemu.d/{OUR_HOOK} is missing: domains get no memory from pools.", INSTALL)
    if not stat.S_ISREG(status.st_mode):
        return failed(
            f"{HOOKS}/qemu.d/{OUR_HOOK} is not a regular file: a confined libvirtd may not execute it.", INSTALL
        )
    if not status.st_mode & stat.S_IXUSR:
        return failed(f"{HOOKS}/qemu.d/{OUR_HOOK} is not executable: libvirt ignores it.", INSTALL)
    ours = _shipped_hook()
    if ours is None:
        return warned("The hook is installed; there is no copy to compare it with.", INSTALL)
    text = text_of(installed)
    if text_of(ours).replace(_CLIENT, str(_client_of(text))) != text:
        return failed(f"{HOOKS}/qemu.d/{OUR_HOOK} differs from {ours}.", INSTALL)
    return passed("The hook is installed.")


def hook_client(machine: Machine) -> Result:
    """Check that the hook's program exists, has this version, and may be executed by libvirtd."""
    path = _client_of(text_of(machine.path(HOOKS / "qemu.d" / OUR_HOOK)))
    if path is None:
        return failed("No installed hook names its program.", INSTALL)
    program = machine.path(path)
    if not program.is_file():
        return failed(f"{path} is missing, which the hook runs: domains with pool memory cannot start.", INSTALL)
    if HOOK_CLIENT.is_file() and HOOK_CLIENT.read_bytes() != program.read_bytes():
        return failed(f"{path}, which the hook runs, differs from {HOOK_CLIENT}.", INSTALL)
    try:
        subprocess.run([program, "--version"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return failed(
            f"{path}, which the hook runs, cannot be executed: {error}.", f"{INSTALL} It needs libjson-c5."
        )
    if apparmor.enabled(root=machine.root) and not apparmor.lets_libvirtd_run(path, root=machine.root):
        return failed(
            f"AppArmor does not allow libvirtd to execute {path}: domains with pool memory cannot start.",
            f"Install it with PREFIX=/usr, or add '{path} PUx,' to"
            f" {apparmor.RULES}/local/usr.sbin.libvirtd and reload that profile.",
        )
    return passed(f"{path} runs.")


def hook_in_force(machine: Machine) -> Result:
    """Check that libvirtd knows of its hooks: it looks for them when it starts, and at SIGHUP."""
    first = min((path.stat().st_ctime for path in _hook_files(machine)), default=None)
    if first is None:
        return warned("libvirt has no hook at all.", INSTALL)
    if _reloaded_since(first, machine):
        return passed("libvirtd was reloaded when the hook was installed.")
    for pid, name, started in _libvirt_daemons(machine):
        knows = started + BTIME_SECONDS >= first or (reloaded_at(f"{name}.service", pid) or 0) >= first
        if not knows and not _hook_was_called(machine, started):
            return warned(
                f"{name} ({pid}) started before the hook was installed, and may not know of it: domains would then"
                " start without pool memory.",
                f"systemctl reload {name}; running domains are not affected.",
            )
    return passed("No running libvirtd is older than the hook, or it was reloaded since.")


def other_hooks(machine: Machine) -> Result:
    """Check that libvirt runs no copy of the hook, and nothing unknown beside it."""
    others = [path for path in _hook_files(machine) if path.parent.name == "qemu.d" and path.name != OUR_HOOK]
    copies = [path.name for path in others if NAMESPACE.encode() in path.read_bytes()]
    if copies:
        return failed(
            f"{HOOKS}/qemu.d contains copies of virt-dmem's hook: {', '.join(copies)}. libvirt runs every"
            " executable there.",
            "Remove them; keep backups elsewhere.",
        )
    if others:
        names = ", ".join(path.name for path in others)
        return warned(
            f"libvirt also runs {names} in {HOOKS}/qemu.d.",
            "Make sure that they are intended: leftovers of a package manager or an editor are run, too.",
        )
    return passed(f"No other executable in {HOOKS}/qemu.d.")


def _shipped_hook() -> Path | None:
    """Return the hook as shipped: beside the modules where installed, beside the package in a checkout."""
    package = Path(__file__).parents[2]
    places = (package / "hooks/qemu.d" / OUR_HOOK, package.parent / "hooks/qemu.d" / OUR_HOOK)
    return next((place for place in places if place.is_file()), None)


def _client_of(hook: str) -> Path | None:
    """Return the program that an installed hook runs."""
    found = re.search(r'"(/[^"\n]+/virt-dmem-hook)"', hook)
    return Path(found[1]) if found else None


def _hook_files(machine: Machine) -> list[Path]:
    """Return what virHookCall() of libvirt runs for QEMU: every executable in qemu.d, whatever its name."""
    hooks = machine.path(HOOKS)
    candidates = [hooks / "qemu", *sorted((hooks / "qemu.d").glob("*"))]
    return [path for path in candidates if path.is_file() and path.stat().st_mode & stat.S_IXUSR]


def _libvirt_daemons(machine: Machine) -> Iterator[tuple[int, str, float]]:
    """Yield PID, name and start (seconds since the epoch) of each libvirtd in this mount namespace."""
    proc = machine.path("/proc")
    for pid in processes.processes(root=machine.root):
        name = processes.process_name(pid, root=machine.root)
        if name not in LIBVIRT_DAEMONS or _namespace(proc / str(pid)) != _namespace(proc / "self"):
            continue
        if (ticks := processes.start_ticks(pid, root=machine.root)) is not None:
            yield pid, name, processes.started_at(ticks, root=machine.root)


def _namespace(process: Path) -> str:
    link = process / "ns/mnt"
    return str(link.readlink()) if link.is_symlink() else ""


def _reloaded_since(first: float, machine: Machine) -> bool:
    """Return whether packaging/integrate.sh had libvirtd look for hooks since then."""
    try:
        return machine.path(_RELOADED).stat().st_mtime >= first
    except FileNotFoundError:
        return False


def _hook_was_called(machine: Machine, since: float) -> bool:
    """Return whether virt-dmemd served a hook since then, which proves that libvirtd runs it."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            lately = [domain for domain in client.call("ListDomains")["domains"] if domain["since"] > since]
            shown = (client.call("ShowDomain", domain=domain["uuid"])["domain"] for domain in lately)
            return any(step["at"] > since for domain in shown for step in domain["steps"])
    except (DaemonUnreachable, PermissionRefused, DomainRefused):  # or its domain ended in just this moment
        return False
