# SPDX-License-Identifier: GPL-2.0-or-later
"""Query every QEMU for the RAM id of each of its machines; write ``virt_dmem/domain_xml/ram_ids.py``.

``python -m tests.rig.qemu_ram_ids ROOT...`` as root, where each ROOT is a tree with the ``qemu-system-*`` of a
release, such as ``mmdebstrap --variant=extract --include=qemu-system-arm,qemu-system-mips,qemu-system-misc,…``
creates, with a ``/dev/null`` in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ARCHES", "ask"]

ARCHES = {
    "aarch64": "aarch64", "alpha": "alpha", "arm": "armv7l armv6l", "cris": "cris", "hppa": "parisc",
    "i386": "i686", "loongarch64": "loongarch64", "m68k": "m68k", "microblaze": "microblaze",
    "microblazeel": "microblazeel", "mips": "mips", "mips64": "mips64", "mips64el": "mips64el", "mipsel": "mipsel",
    "or1k": "openrisc", "ppc": "ppc", "ppc64": "ppc64 ppc64le", "riscv32": "riscv32", "riscv64": "riscv64",
    "s390x": "s390x", "sh4": "sh4", "sh4eb": "sh4eb", "sparc": "sparc", "sparc64": "sparc64", "x86_64": "x86_64",
    "xtensa": "xtensa", "xtensaeb": "xtensaeb",
}  # fmt: skip
"""libvirt's names for the architectures of QEMU's programs; those without a name are left out."""

_VERSION = re.compile(r"-\d+\.\d+(\.\d+)?$")
_HEAD = '''\
# SPDX-License-Identifier: GPL-2.0-or-later
"""How QEMU names the boot memory of its machines: made by ``python -m tests.rig.qemu_ram_ids``, not by hand.

From QEMU {versions}, by ``query-machines``. No two of them disagree.
"""

from __future__ import annotations

__all__ = ["RAM_IDS"]

RAM_IDS: tuple[tuple[str, str, str], ...] = (
'''
_TAIL = '''\
)
"""Architectures of libvirt; the id, empty where QEMU has no memory backend for boot memory; the machine types
with it. A type stands for all its versions: ``pc-q35`` for ``pc-q35-7.2`` and for ``pc-q35-rhel9.4.0``."""
'''


def ask(program: str, root: Path | None = None) -> tuple[str, dict[str, str]]:
    """Return the version of a ``qemu-system-*``, and the RAM ids ("" for none) of its machines and aliases."""
    command = [program, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    said = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "query-machines", "quit"))
    done = subprocess.run(
        ["chroot", str(root), *command] if root else command, input=said, capture_output=True, text=True,
        timeout=600, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    version = lines[0]["QMP"]["version"]["qemu"]
    machines = next(line["return"] for line in lines if isinstance(line.get("return"), list))
    names = [(name, machine) for machine in machines for name in (machine["name"], machine.get("alias")) if name]
    found = {name: machine.get("default-ram-id", "") for name, machine in names if name != "none"}
    return f"{version['major']}.{version['minor']}", found


def table(by_arch: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """Return the rows, with those that several architectures share only once."""
    rows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for arch, machines in by_arch.items():
        by_id: defaultdict[str, set[str]] = defaultdict(set)
        for machine, ram_id in machines.items():
            by_id[ram_id].add(_VERSION.sub("", machine))
        for ram_id, families in by_id.items():
            rows[ram_id, " ".join(sorted(families))].append(arch)
    return sorted((" ".join(arches), ram_id, families) for (ram_id, families), arches in rows.items())


def _literal(text: str) -> str:
    """Return ``text`` as a string literal, over several lines where it is long."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > 90:
            lines.append(line)
            line = ""
        line += f"{word} "
    lines.append(line.rstrip())
    if len(lines) == 1:
        return json.dumps(lines[0])
    return "\n        " + "\n        ".join(map(json.dumps, lines))


def _main(roots: list[str]) -> None:
    versions: set[str] = set()
    by_arch: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for root in map(Path, roots):
        for name, arches in ARCHES.items():
            program = f"/usr/bin/qemu-system-{name}"
            if not (root / program[1:]).exists():
                continue
            if (root / program[1:]).read_bytes()[:2] == b"#!":  # Debian 12's i386 is its x86_64, called by sh
                program = "/usr/bin/qemu-system-x86_64"
            version, machines = ask(program, root)
            versions.add(version)
            for arch in arches.split():
                for machine, ram_id in machines.items():
                    known = by_arch[arch].setdefault(machine, ram_id)
                    if known != ram_id:
                        raise SystemExit(f"{arch} {machine}: {known!r} and {ram_id!r}")
    rows = "".join(
        f"    ({_literal(arches)}, {json.dumps(ram_id)}, {_literal(families)}),\n"
        for arches, ram_id, families in table(by_arch)
    )
    head = _HEAD.format(versions=" and ".join(sorted(versions, key=lambda text: [*map(int, text.split("."))])))
    Path("virt_dmem/domain_xml/ram_ids.py").write_text(head + rows + _TAIL)


if __name__ == "__main__":
    _main(sys.argv[1:])
