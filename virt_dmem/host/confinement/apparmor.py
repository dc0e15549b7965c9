# SPDX-License-Identifier: GPL-2.0-or-later
"""Read from AppArmor's rules whether QEMU may access its extents and monitor, and libvirtd run the hook's program.

libvirt generates a domain's profile at each start from ``libvirt/TEMPLATE.qemu``, which includes the abstraction
``libvirt-qemu``; so these files show what the next QEMU is allowed. The profile is named ``libvirt-<uuid>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from virt_dmem.host import kernel

__all__ = ["RULES", "enabled", "lets_libvirtd_run", "lets_qemu_in", "lets_qemu_listen", "monitor_rule", "rule"]

RULES = Path("/etc/apparmor.d")
_QEMU = ("libvirt/TEMPLATE.qemu", "abstractions/libvirt-qemu")
_LIBVIRTD = ("usr.sbin.libvirtd", "usr.sbin.virtqemud")
_PROFILE = "libvirt-00000000-0000-0000-0000-000000000000"
_INCLUDE = re.compile(r"^\s*#?include\s+(?:if\s+exists\s+)?<([^>\n]+)>", re.MULTILINE)
_RULE = re.compile(
    r'^\s*(?:(?:owner|allow|audit)\s+)*(?P<quote>"?)(?P<path>[/@][^"\n]*?)(?P=quote)\s+(?P<may>\w+),'
)
_GLOB = re.compile(r"\*\*|\*|\?|@\{profile_name\}|@\{\w+\}|[{},]|\[[^]]*\]|\\.|.", re.DOTALL)


def enabled(*, root: Path = kernel.ROOT) -> bool:
    """Return whether AppArmor is enabled in this kernel."""
    return _text(root / "sys/module/apparmor/parameters/enabled").strip() == "Y"


def rule(pools_dir: Path | str) -> str:
    """Return the path of virt-dmem's rule, as AppArmor writes it."""
    return f"{pools_dir}/*/@{{profile_name}}/**"


def lets_qemu_in(pools_dir: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Return whether a rule lets a QEMU read and write an extent of its own domain in a pool below ``pools_dir``.

    Any rule counts, not only virt-dmem's. Access granted by other means (a profile that the administrator wrote for
    one domain, complain mode, an abstraction that is not about libvirt) is not seen.
    """
    return _grant(f"{pools_dir}/pool/{_PROFILE}/ram-node0", "rw", _QEMU, root)


def monitor_rule(directory: Path | str) -> str:
    """Return the path of virt-dmem's rule for monitors in a directory, as AppArmor writes it."""
    return f"{directory}/@{{profile_name}}.qmp"


def lets_qemu_listen(directory: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Return whether a rule lets a QEMU create its own domain's monitor in a directory; see ``lets_qemu_in``."""
    return _grant(f"{directory}/{_PROFILE}.qmp", "rw", _QEMU, root)


def lets_libvirtd_run(program: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Return whether each profile of libvirt's daemons lets them execute a program; true without a profile."""
    profiles = [name for name in _LIBVIRTD if (root / str(RULES)[1:] / name).is_file()]
    return all(_grant(str(program), "x", (name,), root) for name in profiles)


def _grant(path: str, wanted: str, begin: tuple[str, ...], root: Path) -> bool:
    for text in _texts(root / str(RULES)[1:], begin):
        for line in text.splitlines():
            found = _RULE.match(line)
            if found and set(wanted) <= set(found["may"]) and _pattern(found["path"]).fullmatch(path):
                return True
    return False


def _texts(rules: Path, begin: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts of the files ``begin`` and of those about libvirt that they include, each once."""
    seen: set[Path] = set()
    to_read = [rules / name for name in begin]
    while to_read:
        path = to_read.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.is_dir():
            to_read += [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
        elif text := _text(path):
            to_read += [rules / name for name in _INCLUDE.findall(text) if "virt" in name]
            yield text


def _pattern(glob: str) -> re.Pattern[str]:
    """Translate a path of AppArmor (apparmor.d(5), "Globbing"); an unknown variable matches anything."""
    translated = {
        "**": ".*",
        "*": "[^/]*",
        "?": "[^/]",
        "{": "(?:",
        "}": ")",
        ",": "|",
        "@{profile_name}": _PROFILE,
    }
    pieces, depth = [], 0
    for piece in _GLOB.findall(glob):
        depth += (piece == "{") - (piece == "}")
        if piece == "," and not depth:
            pieces.append(",")
        elif piece in translated:
            pieces.append(translated[piece])
        elif piece.startswith("@{"):
            pieces.append(".*")
        else:
            pieces.append(piece if piece.startswith("[") else re.escape(piece[-1]))
    try:
        return re.compile("".join(pieces))
    except re.error:  # not a rule that AppArmor would load
        return re.compile(r"(?!)")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
