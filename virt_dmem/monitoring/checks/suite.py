# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``: is everything in its place, and if not, what is to be done.

A row of ``CHECKS`` is a name and a function; a function looks at one thing and changes nothing. Files are read
below ``Host.root``, so that a tree stands for a machine; the daemon, libvirt and the helper are really asked.
"""

from __future__ import annotations

import enum
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from virt_dmem.config.schema import Config
from virt_dmem.domain_xml.elements import NAMESPACE
from virt_dmem.domain_xml.monitor import socket_of
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.errors import DaemonUnreachable, DmemError, DomainRefused, PermissionRefused, PoolError
from virt_dmem.host import apparmor as apparmor_rules
from virt_dmem.host import kernel, mounts, processes
from virt_dmem.host.huge_pages import huge_page_sizes
from virt_dmem.host.huge_pages import hvo as kernel_hvo
from virt_dmem.hypervisor.connection import Hypervisor
from virt_dmem.hypervisor.paths import DEFAULT_MEMORY_BACKING_DIR
from virt_dmem.ipc.client import Client
from virt_dmem.monitoring.checks import dmemfs as dmemfs_checks
from virt_dmem.native.programs import HELPER, HOOK_CLIENT
from virt_dmem.pools import registry
from virt_dmem.pools.backends.table import BACKENDS
from virt_dmem.pools.record import PoolRecord
from virt_dmem.units import format_size

__all__ = ["CHECKS", "Check", "Host", "Result", "Status", "run"]

HOOKS = Path("/etc/libvirt/hooks")
"""SYSCONFDIR "/libvirt/hooks" of libvirt's build (LIBVIRT_HOOK_DIR in its src/util/virhook.c)."""
OUR_HOOK = "50-virt-dmem"
INSTALL = "Install it: make install, or the package again."
LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
QEMU_USERS = ("libvirt-qemu", "qemu")
"""QEMU's user where qemu.conf names none: Debian's and Fedora's builds of libvirt."""
MEMORY_FSTYPES = ("tmpfs", "ramfs", "hugetlbfs")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_CLIENT = "@PREFIX@/bin/virt-dmem-hook"
"""The program that the hook runs, as the hook has it before it is installed."""
BTIME_SECONDS = 2
"""How far the start of a process may be off: ``btime`` of /proc/stat has whole seconds, and may step by one."""


_LOSES_OPTIMIZED_PAGES = re.compile(r"6\.12\.117\b")
"""Kernels seen to free optimized huge pages wrongly (docs/operations.md); others tell it by their taint."""


class Status(enum.Enum):
    """How it looks."""

    PASS = "PASS"  # noqa: S105 -- no password
    WARN = "WARN"
    """It works, with less than could be had, or we cannot tell."""
    FAIL = "FAIL"
    """Domains with pool memory will not start, or not as they should."""


@dataclass(frozen=True)
class Result:
    """What one check found, and what to do about it."""

    status: Status
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Host:
    """The machine that is looked at."""

    config: Config
    uri: str
    root: Path = field(default=kernel.ROOT)

    def path(self, path: str | Path) -> Path:
        """Return where an absolute path lies below ``root``."""
        return self.root / str(path).lstrip("/")

    def setting(self, name: str) -> str | None:
        """Return a string setting of libvirt's qemu.conf, ``None`` where it is not set."""
        text = _text(self.path(self.config.libvirt.config_file))
        found = re.search(rf"^\s*{name}\s*=\s*\[?\s*[\"']([^\"'\n]*)[\"']", text, re.MULTILINE)
        return found[1] if found else None


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    name: str
    look: Callable[[Host], Result]


def run(machine: Host) -> Iterator[tuple[Check, Result]]:
    """Do all checks, one after another; one that cannot look says so and does not stop the others."""
    for check in CHECKS:
        try:
            result = check.look(machine)
        except OSError as error:
            hint = "Run the check as root." if os.geteuid() else "Look why it cannot be read."
            result = _warn(f"{error.filename}: {error.strerror}.", hint)
        except DmemError as error:
            result = _fail(error.message, error.hint)
        yield check, result


def _pass(message: str) -> Result:
    return Result(Status.PASS, message)


def _warn(message: str, hint: str) -> Result:
    return Result(Status.WARN, message, hint)


def _fail(message: str, hint: str) -> Result:
    return Result(Status.FAIL, message, hint)


# The kernel and the pools


def huge_pages(machine: Host) -> Result:
    """Huge pages are there to make pools of."""
    probe = BACKENDS["hugetlbfs"].probe(root=machine.root)
    if not probe.available:
        complain = _fail if _hugetlbfs_pools(machine) else _warn
        return complain(f"No hugetlbfs pools here: {probe.reason}.", "Boot a kernel with hugetlbfs.")
    sizes = ", ".join(map(format_size, huge_page_sizes(root=machine.root)))
    return _pass(f"The kernel has huge pages of {sizes}.")


def hvo(machine: Host) -> Result:
    """HVO is there, and on where a pool counts on it."""
    on = kernel_hvo(root=machine.root)
    if on is None:
        return _warn(
            "The kernel has no HVO: pools of huge pages keep all their struct pages, and nothing is saved.",
            "Boot a kernel with CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP (x86-64, 5.19 or later).",
        )
    late = [pool.name for pool in _hugetlbfs_pools(machine) if pool.hvo and pool.got_bytes and not pool.optimized]
    if late:
        return _warn(
            f"HVO was off when the pages of pool {', '.join(late)} were taken: they save nothing.",
            "Stop the pool's domains, then destroy it and create it again.",
        )
    if kernel.bad_pages_met(root=machine.root):
        return _warn(
            "The kernel has met pages in a bad state since it booted, and does not use them again: with HVO, mostly"
            " huge pages that were to be freed.",
            "Look for 'Bad page state' in dmesg. A reboot brings the memory back; do not shrink pools before it.",
        )
    if _LOSES_OPTIMIZED_PAGES.match(release := kernel.kernel_release(root=machine.root)):
        return _warn(
            f"Linux {release} loses huge pages that HVO optimized when they are freed.",
            "Pools work, and save what they should. Do not destroy or shrink one there without a reboot after it.",
        )
    return _pass(f"HVO is {'on' if on else 'available; making a pool switches it on'}.")


def pools_mounted(machine: Host) -> Result:
    """Every recorded pool is mounted and has what it should have."""
    recorded, damaged = registry.readable(_config(machine))
    for failure in damaged.values():
        return _fail(failure.message, failure.hint)
    if not recorded:
        return _warn("There is no pool yet.", "Make one: virt-dmem pool create NAME --size SIZE")
    wrong, commands = [], dict[str, None]()
    for pool in recorded:
        has = sum(registry.capacity(pool, root=machine.root).values())
        if pool.state != "ready" or has < pool.wanted_bytes:
            has_of = f"{format_size(has)} of {format_size(pool.wanted_bytes)}"
            wrong.append(f"{pool.name} is {pool.state} and has {has_of}")
            verb = "destroy" if pool.state == "destroying" else "mount"
            commands[f"'virt-dmem pool {verb} {pool.pool}'"] = None
    if wrong:
        return _fail(f"Pool {'; '.join(wrong)}.", f"Run {' and '.join(commands)}, and read what it says.")
    return _pass(f"{len(recorded)} as recorded: {', '.join(pool.name for pool in recorded)}.")


def first_hugetlbfs_mount(machine: Host) -> Result:
    """No pool is the mount that libvirt takes for the <hugepages> of others."""
    if machine.setting("hugetlbfs_mount") is not None:
        return _pass("qemu.conf names libvirt's hugetlbfs_mount.")
    seen: set[str] = set()
    for mount in mounts.mounts(root=machine.root):
        if mount.fstype != "hugetlbfs":
            continue
        found = re.search(r"pagesize=(\w+)", mount.options)
        page_size = found[1] if found else ""
        if page_size not in seen and Path(mount.path).parent == machine.config.pools_dir:
            return _fail(
                f"{mount.path} is the first hugetlbfs mount of its page size: a libvirtd that starts now gives"
                " the pool's memory to domains with <hugepages>.",
                "Mount /dev/hugepages before the pools (systemd: dev-hugepages.mount), or set hugetlbfs_mount.",
            )
        seen.add(page_size)
    return _pass("No pool is the first hugetlbfs mount of its page size.")


def pool_roots(machine: Host) -> Result:
    """QEMU's user can pass through every directory down to a pool."""
    user = _qemu_user(machine)
    for pool in _records(machine):
        for directory in reversed([Path(pool.mount), *Path(pool.mount).parents]):
            path = machine.path(directory)
            if path.exists() and not _may_search(path.stat(), user):
                return _fail(
                    f"{directory} has mode {stat.S_IMODE(path.stat().st_mode):04o}: QEMU's user cannot pass to"
                    f" pool {pool.name}.",
                    f"chmod o+x {directory}",
                )
    return _pass("QEMU's user can pass to every pool.")


def dmemfs(machine: Host) -> Result:
    """See whether the kernel gives dmemfs what it needs."""
    records = [record for record in _records(machine) if record.backend == "dmemfs"]
    if found := dmemfs_checks.complaint(records, root=machine.root):
        return _warn(*found)
    if not records:
        return _pass("No pool is on dmemfs.")
    return _pass(f"{len(records)} on dmemfs, whose memory cannot be pinned: no post-copy migration.")


def domains(machine: Host) -> Result:
    """No domain asks a pool for what its memory cannot."""
    asking = []
    with Hypervisor(machine.uri) as hypervisor:
        for domain in hypervisor.domains():
            with suppress(PoolError, DomainRefused):  # refused when it starts, with the reason
                if domain.managed:
                    memory = read_domain(hypervisor.inactive_xml(domain.uuid, secure=False))
                    asking.append((memory, registry.choose(_config(machine), memory.pool)))
    found = dmemfs_checks.impossible(asking)
    if found:
        return _fail(" ".join(refusal.message for refusal in found), found[0].hint)
    return _pass(f"{len(asking)} ask for pool memory, and nothing that it cannot.")


# Our own parts


def daemon(machine: Host) -> Result:
    """virt-dmemd answers."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            count = len(client.call("ListDomains")["domains"])
    except DmemError as error:
        if isinstance(error, PermissionRefused) or isinstance(error.__cause__, PermissionError):
            return _warn(error.message, "Run the check as root, or as a member of the group.")
        raise
    return _pass(f"virt-dmemd answers; {count} domains hold memory.")


def alerts(machine: Host) -> Result:
    """Nothing happened that virt-dmemd warns of."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            active = client.call("ListAlerts")["alerts"]
    except (DaemonUnreachable, PermissionRefused):
        return _warn("Only virt-dmemd knows, and it does not answer us.", "Mend what is said of the daemon.")
    if active:
        message = " ".join(f"{alert['code']}: {alert['message']}" for alert in active)
        return _warn(message, "'virt-dmem alerts' says what to do.")
    return _pass("No alert is active.")


def group(machine: Host) -> Result:
    """Those who may look have their group."""
    name = machine.config.daemon.group
    lines = machine.path("/etc/group").read_text("utf-8", "replace").splitlines()
    if any(line.startswith(f"{name}:") for line in lines):
        return _pass(f"There is a group {name}.")
    return _warn(f"There is no group {name}: only root can ask virt-dmemd.", f"groupadd --system {name}")


def helper(machine: Host) -> Result:
    """Run the prefault helper, to no effect."""
    program = machine.config.prefault.helper or HELPER
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _fail(
            f"The helper {program} cannot be run: {error}.", "Install virt-dmem again; it needs a C compiler."
        )
    if done.returncode != 0:
        return _fail(f"The helper {program} ended with status {done.returncode}.", "Install virt-dmem again.")
    return _pass(f"{program} runs.")


# libvirt


def libvirt(machine: Host) -> Result:
    """Connect to libvirt."""
    with Hypervisor(machine.uri):
        return _pass(f"libvirt answers at {machine.uri}.")


def hook(machine: Host) -> Result:
    """Our hook is a real, executable file, and of this version."""
    installed = machine.path(HOOKS / "qemu.d" / OUR_HOOK)
    try:
        status = installed.lstat()
    except FileNotFoundError:
        return _fail(f"{HOOKS}/qemu.d/{OUR_HOOK} is missing: domains get no memory from pools.", INSTALL)
    if not stat.S_ISREG(status.st_mode):
        return _fail(f"{HOOKS}/qemu.d/{OUR_HOOK} is no regular file: a confined libvirtd may not run it.", INSTALL)
    if not status.st_mode & stat.S_IXUSR:
        return _fail(f"{HOOKS}/qemu.d/{OUR_HOOK} is not executable: libvirt passes it over.", INSTALL)
    ours = _shipped_hook()
    if ours is None:
        return _warn("The hook is installed; there is no copy of it to compare with.", INSTALL)
    text = _text(installed)
    if _text(ours).replace(_CLIENT, str(_client_of(text))) != text:
        return _fail(f"{HOOKS}/qemu.d/{OUR_HOOK} differs from {ours}.", INSTALL)
    return _pass("The hook is installed.")


def hook_client(machine: Host) -> Result:
    """Look whether the program that the hook runs is there, of this version, and may be run by libvirtd."""
    path = _client_of(_text(machine.path(HOOKS / "qemu.d" / OUR_HOOK)))
    if path is None:
        return _fail("There is no hook that names the program it runs.", INSTALL)
    program = machine.path(path)
    if not program.is_file():
        return _fail(f"{path} is missing, which the hook runs: no domain with memory from pools starts.", INSTALL)
    if HOOK_CLIENT.is_file() and HOOK_CLIENT.read_bytes() != program.read_bytes():
        return _fail(f"{path}, which the hook runs, differs from {HOOK_CLIENT}.", INSTALL)
    try:
        subprocess.run([program, "--version"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return _fail(f"{path}, which the hook runs, cannot be run: {error}.", f"{INSTALL} It needs libjson-c5.")
    if apparmor_rules.enabled(root=machine.root) and not apparmor_rules.lets_libvirtd_run(path, root=machine.root):
        return _fail(
            f"AppArmor does not let libvirtd run {path}: no domain with memory from pools starts.",
            f"Install it with PREFIX=/usr, or write '{path} PUx,' to"
            f" {apparmor_rules.RULES}/local/usr.sbin.libvirtd and load that profile again.",
        )
    return _pass(f"{path} runs.")


def hook_in_force(machine: Host) -> Result:
    """Tell whether libvirtd knows that there are hooks: it looks for them when it starts, and at SIGHUP."""
    first = min((path.stat().st_ctime for path in _hook_files(machine)), default=None)
    if first is None:
        return _warn("libvirt runs no hook at all.", "Install ours: make install.")
    for pid, name, started in _libvirt_daemons(machine):
        if started + BTIME_SECONDS < first and not _hook_was_called(machine, started):
            return _warn(
                f"{name} ({pid}) started before there was a hook, and may not have looked since: domains would"
                " then start without pool memory.",
                f"systemctl reload {name}; running domains are not affected.",
            )
    return _pass("No libvirtd runs that is older than the hook.")


def other_hooks(machine: Host) -> Result:
    """No backup of our hook, and nothing unknown, runs beside it."""
    others = [path for path in _hook_files(machine) if path.parent.name == "qemu.d" and path.name != OUR_HOOK]
    copies = [path.name for path in others if NAMESPACE.encode() in path.read_bytes()]
    if copies:
        return _fail(
            f"{HOOKS}/qemu.d holds copies of our hook: {', '.join(copies)}. libvirt runs every executable there.",
            "Remove them; keep backups elsewhere.",
        )
    if others:
        names = ", ".join(path.name for path in others)
        return _warn(
            f"libvirt also runs {names} in {HOOKS}/qemu.d.",
            "Make sure that you want them: leftovers of a package manager or an editor are run, too.",
        )
    return _pass(f"No other executable in {HOOKS}/qemu.d.")


def backing_dir(machine: Host) -> Result:
    """Where a link is missing, QEMU would make the file itself: guest memory on a disk.

    Only links of ours are in ``memory_backing_dir``, and the hook fails a start whose links are not right; so
    this matters as long as the hook does not run.
    """
    path = Path(machine.setting("memory_backing_dir") or DEFAULT_MEMORY_BACKING_DIR)
    above = [mount for mount in mounts.mounts(root=machine.root) if path.is_relative_to(mount.path)]
    fstype = max(above, key=lambda mount: len(mount.path)).fstype if above else "unknown"
    safe = all(check(machine).status is Status.PASS for check in (hook, hook_in_force))
    if fstype in MEMORY_FSTYPES or safe:
        return _pass(f"memory_backing_dir {path} is on {fstype}; only links are made there.")
    return _warn(
        f"memory_backing_dir {path} is on {fstype}, and the hook is not known to run: a rewritten domain that"
        " starts without it has its memory in a file there.",
        "Mend what is said of the hook.",
    )


def apparmor(machine: Host) -> Result:
    """AppArmor lets each QEMU reach its own memory, and make its monitor."""
    if not apparmor_rules.enabled(root=machine.root):
        return _pass("AppArmor is not enabled.")
    if machine.setting("security_driver") == "none":
        return _pass("libvirt uses no security driver.")
    pools_dir, monitors_dir = machine.config.pools_dir, socket_of("").parent
    missing = {}
    if not apparmor_rules.lets_qemu_in(pools_dir, root=machine.root):
        missing[apparmor_rules.rule(pools_dir)] = f"reach {pools_dir}"
    if machine.config.libvirt.monitor and not apparmor_rules.lets_qemu_listen(monitors_dir, root=machine.root):
        missing[apparmor_rules.monitor_rule(monitors_dir)] = "make the monitor that 'apply' gives it"
    if not missing:
        return _pass("AppArmor has our rules.")
    rules = apparmor_rules.RULES
    wanted = " and ".join(f"'{rule} rwk,'" for rule in missing)
    return _fail(
        f"AppArmor is enabled and no rule lets QEMU {' or '.join(missing.values())}.",
        f"Install it again, or write {wanted} to"
        f" {rules}/abstractions/libvirt-qemu.d/virt-dmem (Debian 12: {rules}/local/abstractions/libvirt-qemu).",
    )


def selinux(machine: Host) -> Result:
    """Nothing labels extents for SELinux yet."""
    if _text(machine.path("/sys/fs/selinux/enforce")).strip() != "1":
        return _pass("SELinux is not enforcing.")
    if machine.setting("security_driver") == "none":
        return _pass("libvirt uses no security driver.")
    return _fail(
        "SELinux is enforcing, and virt-dmem does not label its files yet: QEMU may not open them.",
        "Allow it by a policy module of your own, or use a host with AppArmor.",
    )


CHECKS = (
    Check("huge-pages", huge_pages),
    Check("hvo", hvo),
    Check("pools", pools_mounted),
    Check("first-hugetlbfs-mount", first_hugetlbfs_mount),
    Check("pool-roots", pool_roots),
    Check("dmemfs", dmemfs),
    Check("daemon", daemon),
    Check("alerts", alerts),
    Check("group", group),
    Check("helper", helper),
    Check("libvirt", libvirt),
    Check("domains", domains),
    Check("hook", hook),
    Check("hook-client", hook_client),
    Check("hook-in-force", hook_in_force),
    Check("other-hooks", other_hooks),
    Check("memory-backing-dir", backing_dir),
    Check("apparmor", apparmor),
    Check("selinux", selinux),
)


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _config(machine: Host) -> Config:
    state_dir = str(machine.path(machine.config.daemon.state_dir))
    return replace(machine.config, daemon=replace(machine.config.daemon, state_dir=state_dir))


def _records(machine: Host) -> list[PoolRecord]:
    config = _config(machine)
    with suppress(FileNotFoundError):
        next(config.pool_records_dir.iterdir(), None)  # raises where it is hidden: an empty list would be a lie
    return registry.records(config)


def _hugetlbfs_pools(machine: Host) -> list[PoolRecord]:
    return [record for record in _records(machine) if record.backend == "hugetlbfs"]


def _shipped_hook() -> Path | None:
    """Return the hook as it was shipped: beside the modules where installed, beside the package in a checkout."""
    package = Path(__file__).parents[2]
    places = (package / "hooks/qemu.d" / OUR_HOOK, package.parent / "hooks/qemu.d" / OUR_HOOK)
    return next((place for place in places if place.is_file()), None)


def _client_of(hook: str) -> Path | None:
    """Return the program that an installed hook runs."""
    found = re.search(r'"(/[^"\n]+/virt-dmem-hook)"', hook)
    return Path(found[1]) if found else None


def _hook_files(machine: Host) -> list[Path]:
    """Return what virHookCall() of libvirt runs for QEMU: every executable in qemu.d, whatever its name."""
    hooks = machine.path(HOOKS)
    candidates = [hooks / "qemu", *sorted((hooks / "qemu.d").glob("*"))]
    return [path for path in candidates if path.is_file() and path.stat().st_mode & stat.S_IXUSR]


def _libvirt_daemons(machine: Host) -> Iterator[tuple[int, str, float]]:
    """Yield PID, name and start (seconds since the epoch) of each libvirtd that sees the mounts we see."""
    proc = machine.path("/proc")
    boot = re.search(r"^btime (\d+)$", (proc / "stat").read_text(), re.MULTILINE)
    for pid in processes.processes(root=machine.root):
        name = processes.process_name(pid, root=machine.root)
        if name not in LIBVIRT_DAEMONS or _namespace(proc / str(pid)) != _namespace(proc / "self"):
            continue
        # the name in parentheses may hold spaces; the start is field 22 of proc_pid_stat(5)
        fields = (proc / f"{pid}/stat").read_text().rpartition(")")[2].split()
        yield pid, name, (int(boot[1]) if boot else 0) + int(fields[19]) / CLOCK_TICKS


def _namespace(process: Path) -> str:
    link = process / "ns/mnt"
    return str(link.readlink()) if link.is_symlink() else ""


def _hook_was_called(machine: Host, since: float) -> bool:
    """Tell whether virt-dmemd served a hook since then: the proof that libvirtd runs it."""
    try:
        with Client(machine.path(machine.config.socket_path)) as client:
            lately = [domain for domain in client.call("ListDomains")["domains"] if domain["since"] > since]
            shown = (client.call("ShowDomain", domain=domain["uuid"])["domain"] for domain in lately)
            return any(step["at"] > since for domain in shown for step in domain["steps"])
    except (DaemonUnreachable, PermissionRefused, DomainRefused):  # or its domain ended in just this moment
        return False


def _qemu_user(machine: Host) -> tuple[int, int] | None:
    """Return QEMU's user and group by number, ``None`` where they are not known."""
    configured = machine.setting("user")
    names = (configured,) if configured else QEMU_USERS
    for line in _text(machine.path("/etc/passwd")).splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[0] in names:
            return int(fields[2]), int(fields[3])
    return None


def _may_search(status: os.stat_result, user: tuple[int, int] | None) -> bool:
    if user and status.st_uid == user[0]:
        return bool(status.st_mode & stat.S_IXUSR)
    if user and status.st_gid == user[1]:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
