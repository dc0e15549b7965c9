# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a private libvirtd and virtlogd, in the private namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from tests.rig.namespace import require_private_namespace
from tests.rig.processes import Program, RigError, answers, end, tail
from virt_dmem.native.programs import HOOK_CLIENT

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["CONSOLES", "HOOK", "PrivateLibvirt", "write_hook"]

_REPOSITORY = Path(__file__).parents[2]
HOOK = _REPOSITORY / "hooks/qemu.d/50-virt-dmem"
"""As in the sources: ``write_hook`` writes an executable one."""
_HOOK_DIR = Path("/etc/libvirt/hooks/qemu.d")
_LOGS = Path("/var/log/libvirt")
CONSOLES = _LOGS / "consoles"
"""Serial consoles of the guests, a file each."""
_QEMU_PIDS = Path("/run/libvirt/qemu")
_CAPABILITIES = Path("/var/cache/libvirt/qemu/capabilities")
_CAPABILITIES_KEPT = _REPOSITORY / ".cache/rig-capabilities"

_LIBVIRTD_CONF = f"""
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_filters = "2:util.hook 2:qemu.qemu_process"
log_outputs = "2:file:{_LOGS}/libvirtd.log"
"""
_QEMU_CONF = """
security_driver = "none"
cgroup_controllers = []
"""


def _environment() -> dict[str, str]:
    """Return the environment without a service manager's variables (NOTIFY_SOCKET, LISTEN_FDS) and a locale."""
    inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "TMPDIR"}}
    inherited["PATH"] = f"{inherited.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
    return inherited | {"LC_ALL": "C"}


def _migration_ports() -> str:
    """Return ports for this process alone, below the ephemeral ones: two that look for any may find the same."""
    first = 20_000 + os.getpid() % 400 * 30
    return f"migration_port_min = {first}\nmigration_port_max = {first + 29}\n"


def _log_files() -> list[Path]:
    files = [*_LOGS.glob("*"), *_LOGS.glob("qemu/*.log"), *CONSOLES.glob("*.log")]
    return sorted(file for file in files if file.is_file())


def write_hook(path: Path, *, hook: Path = HOOK, client: Path = HOOK_CLIENT) -> Path:
    """Write ``hook`` to ``path`` as ``make install`` would, except that it runs this ``client``."""
    path.write_text(hook.read_text().replace("@PREFIX@/bin/virt-dmem-hook", str(client)))
    path.chmod(0o755)
    return path


class PrivateLibvirt:
    """A private libvirtd; needs ``enter_private_namespace()`` before.

    ``hook``: the file that becomes /etc/libvirt/hooks/qemu.d/50-virt-dmem; by default the project's when it
    exists; None for none. ``qemu_conf``: lines to add to qemu.conf (of two settings the last wins). ``host_uuid``:
    of a host that libvirt takes for another one.
    """

    uri = "qemu:///system"

    def __init__(self, *, hook: Path | None = HOOK, qemu_conf: str = "", host_uuid: str = "") -> None:
        self.host_uuid = host_uuid
        self.hook = hook if hook is not None and (hook != HOOK or hook.exists()) else None
        self.qemu_conf = _QEMU_CONF + qemu_conf
        env = _environment()
        self._virtlogd = Program(
            "virtlogd", ["virtlogd", "-p", "/run/libvirt/virtlogd.pid"], log=_LOGS / "logd", env=env
        )
        self.libvirtd = Program(
            "libvirtd", ["libvirtd", "-p", "/run/libvirt/libvirtd.pid"], log=_LOGS / "out", env=env
        )

    def __enter__(self) -> PrivateLibvirt:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start virtlogd and libvirtd, and wait until libvirtd answers.

        :raise RigError: When it does not; with its log.
        """
        require_private_namespace()
        self._write_configuration()
        if not self._virtlogd.running:
            self._virtlogd.start()
            self._virtlogd.wait_until("its socket", lambda: answers(Path("/run/libvirt/virtlogd-sock")))
        self.libvirtd.start()
        self.libvirtd.wait_until("its socket", lambda: answers(Path("/run/libvirt/libvirt-sock")))
        self.virsh("version", timeout=300)  # is answered once its drivers are ready
        self._keep_capabilities()

    def stop(self) -> None:
        """Stop libvirtd; guests keep running."""
        self.libvirtd.stop(timeout=30)

    def kill(self) -> None:
        """Kill libvirtd by SIGKILL; guests keep running."""
        self.libvirtd.kill()

    def restart(self) -> None:
        """Stop libvirtd if it is running, and start it."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Send SIGHUP: libvirtd looks for hooks again."""
        os.kill(self.libvirtd.pid, signal.SIGHUP)

    def close(self) -> None:
        """End libvirtd, then every remaining QEMU (without a call of the hook), then virtlogd. Repeatable."""
        self.libvirtd.stop(timeout=10)
        for pid in self.qemu_pids().values():
            end(pid, "qemu")
        shutil.rmtree(_QEMU_PIDS, ignore_errors=True)
        self._virtlogd.stop()

    def qemu_pids(self) -> dict[str, int]:
        """Return the process ids of the running QEMUs, by domain name."""
        found = {}
        for file in _QEMU_PIDS.glob("*.pid"):
            # another may exit between two reads
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if Path(f"/proc/{pid}/comm").read_text().startswith("qemu"):
                    found[file.stem] = pid
        return found

    def virsh(self, *args: str | Path, check: bool = True, timeout: float = 300.0, stdin: str = "") -> str:
        """Run virsh with ``args`` and return its output, stripped; both streams if ``check`` is False.

        :raise RigError: With ``check``, when it fails; with its output.
        """
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=_environment(),
        )
        if not check:
            return (done.stdout + done.stderr).strip()
        if done.returncode:
            raise RigError(f"virsh {' '.join(map(str, args))}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def define(self, xml: str) -> str:
        """Define a domain; return its UUID."""
        self.virsh("define", "/dev/stdin", stdin=xml)
        root = etree.fromstring(xml)
        return root.findtext("uuid") or self.virsh("domuuid", root.findtext("name") or "")

    def console(self, domain: str) -> str:
        """Return the output of the guest's serial console so far."""
        return tail(CONSOLES / f"{domain}.log", 10_000)

    def state(self, domain: str) -> str:
        """Return the output of ``virsh domstate``."""
        return self.virsh("domstate", domain)

    def remove(self, *domains: str) -> None:
        """Destroy and undefine ``domains``, or all; missing ones are ignored."""
        for domain in domains or self.virsh("list", "--all", "--uuid").split():
            self.virsh("destroy", domain, check=False)
            self.virsh("undefine", domain, "--nvram", check=False)

    def install_hook(self, hook: Path) -> None:
        """Put ``hook`` in place by rename; the very first needs ``reload()`` or a restart.

        Its program is copied beside it: a confined libvirtd may not run programs in the repository.
        """
        _HOOK_DIR.mkdir(parents=True, exist_ok=True)
        new = _HOOK_DIR.parent / ".virt-dmem.new"
        client = Path(shutil.copy(HOOK_CLIENT, new)).rename(_HOOK_DIR.parent / HOOK_CLIENT.name)
        write_hook(new, hook=hook, client=client).rename(_HOOK_DIR / "50-virt-dmem")

    def remove_hook(self) -> None:
        """Remove the hook."""
        (_HOOK_DIR / "50-virt-dmem").unlink(missing_ok=True)

    @staticmethod
    def logs(lines: int = 60) -> dict[str, str]:
        """Return the ends of all logs and consoles that are not empty, by file name."""
        ends = {str(file): tail(file, lines) for file in _log_files()}
        return {name: text for name, text in ends.items() if text}

    @staticmethod
    def clear_logs() -> None:
        """Truncate all logs; remove those of domains (none may be running)."""
        for file in _log_files():
            if file.parent == _LOGS:
                os.truncate(file, 0)
            else:
                file.unlink()

    def _write_configuration(self) -> None:
        etc = Path("/etc/libvirt")
        own = f'host_uuid = "{self.host_uuid}"\n' if self.host_uuid else ""
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF + own)
        (etc / "qemu.conf").write_text(_migration_ports() + self.qemu_conf)
        (etc / "virtlogd.conf").write_text("")
        CONSOLES.mkdir(exist_ok=True)
        if self.hook is not None:
            self.install_hook(self.hook)
        if not _CAPABILITIES.exists() and _CAPABILITIES_KEPT.exists():
            _CAPABILITIES.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(_CAPABILITIES_KEPT, _CAPABILITIES)

    @staticmethod
    def _keep_capabilities() -> None:
        """Keep libvirt's cache of QEMU's capabilities, which libvirt itself invalidates."""
        _CAPABILITIES_KEPT.mkdir(parents=True, exist_ok=True)
        for file in _CAPABILITIES.glob("*.xml"):
            new = _CAPABILITIES_KEPT / f".{file.name}.{os.getpid()}"
            shutil.copyfile(file, new)
            new.rename(_CAPABILITIES_KEPT / file.name)
