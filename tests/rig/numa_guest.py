# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot a machine with several NUMA nodes, for tests that need more than one: QEMU with TCG, and Python in it.

No libvirt, no network, no disk: the kernel of ``tests.rig.guest`` and an initramfs with busybox, this Python, the
project and a script to run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rig.guest import fetch_kernel
from tests.rig.processes import RigError

__all__ = ["HostNode", "run_on_numa_machine"]

_REPOSITORY = Path(__file__).parents[2]
_BUSYBOX = Path("/bin/busybox")
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "unittest")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 tmp /run
cd /project && PYTHONPATH=/project:/site {python} -B /script.py
echo "exit status $?"
poweroff -f
"""


@dataclass(frozen=True)
class HostNode:
    """One node of the machine; with 0 CPUs it is like CXL memory."""

    memory_mib: int
    cpus: int = 1


def run_on_numa_machine(script: Path, nodes: Sequence[HostNode], *, timeout: float = 600) -> str:
    """Run a Python script, which may import ``virt_dmem``, on a machine with ``nodes``; return its output.

    :raise RigError: When the machine does not come up, or does not end in time; with its console.
    """
    kernel = fetch_kernel()
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    with tempfile.TemporaryDirectory() as name:
        initrd = Path(name, "initrd")
        initrd.write_bytes(_initramfs(Path(name, "root"), script))
        command = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults"]
        command += ["-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", str(vmlinuz)]
        command += [
            "-initrd",
            str(initrd),
            "-append",
            "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off",
        ]
        command += [
            "-m",
            f"{sum(node.memory_mib for node in nodes)}M",
            "-smp",
            str(sum(node.cpus for node in nodes)),
        ]
        cpu = 0
        for number, node in enumerate(nodes):
            command += ["-object", f"memory-backend-ram,id=m{number},size={node.memory_mib}M"]
            cpus = f",cpus={cpu}-{cpu + node.cpus - 1}" if node.cpus else ""
            command += ["-numa", f"node,nodeid={number},memdev=m{number}{cpus}"]
            cpu += node.cpus
        try:
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            raise RigError(f"The NUMA machine did not end within {timeout:g} s:\n{said}") from late
    said = done.stdout.decode(errors="replace").replace("\r", "")
    if "exit status" not in said:
        raise RigError(f"The NUMA machine did not get to the end:\n{said}{done.stderr.decode()}")
    return said


def _initramfs(root: Path, script: Path) -> bytes:
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    (root / "bin").mkdir(parents=True)
    _copy(_BUSYBOX, root / "bin/busybox")
    _copy(python, root / str(python)[1:])
    left_out = [
        f"--exclude={directory}" for directory in (*_LEFT_OUT, "site-packages", "dist-packages", "config-*")
    ]
    _copy_tree(standard, root / str(standard)[1:], *left_out)
    site = Path(sysconfig.get_path("purelib"))
    for package in ("msgspec", "lxml"):
        _copy_tree(site / package, root / "site" / package, "--exclude=*.pxd", "--exclude=includes")
    _copy_tree(_REPOSITORY / "virt_dmem", root / "project/virt_dmem")
    for library in _libraries([python, *root.rglob("*.so"), root / "project/virt_dmem/native/virt-dmem-prefault"]):
        _copy(library, root / str(library)[1:])
    _copy(script, root / "script.py")
    (root / "init").write_text(_INIT.format(python=python))
    (root / "init").chmod(0o755)
    listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
    return subprocess.run(archive, input=listing.encode(), stdout=subprocess.PIPE, check=True, cwd=root).stdout


def _libraries(programs: Sequence[Path]) -> set[Path]:
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", done.stdout)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-L", source, target], check=True)


def _copy_tree(source: Path, target: Path, *options: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["tar", "-C", source, *options, "-c", "."], stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-C", target, "-x"], input=packed.stdout, check=True)
