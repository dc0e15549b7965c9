# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether AppArmor's rules let each QEMU reach its own extents and monitor, and libvirtd run the hook's program.

libvirt makes a domain's profile anew at each start from ``libvirt/TEMPLATE.qemu``, which includes the abstraction
``libvirt-qemu``; so what stands there now is what the next QEMU gets. The profile is named ``libvirt-<uuid>``.
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
    """Tell whether this kernel has AppArmor switched on."""
    return _text(root / "sys/module/apparmor/parameters/enabled").strip() == "Y"


def rule(pools_dir: Path | str) -> str:
    """Return the path of our rule, as AppArmor writes it."""
    return f"{pools_dir}/*/@{{profile_name}}/**"


def lets_qemu_in(pools_dir: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Tell whether some rule lets a QEMU read and write an extent of its own domain in a pool below ``pools_dir``.

    Any rule will do, not only ours. What is granted by other means (a profile that the administrator wrote for one
    domain, a mode of complaining, an abstraction that is not about libvirt) is not seen.
    """
    return _grant(f"{pools_dir}/pool/{_PROFILE}/ram-node0", "rw", _QEMU, root)


def monitor_rule(directory: Path | str) -> str:
    """Return the path of our rule for monitors in a directory, as AppArmor writes it."""
    return f"{directory}/@{{profile_name}}.qmp"


def lets_qemu_listen(directory: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Tell whether some rule lets a QEMU make its own domain's monitor in a directory; see ``lets_qemu_in``."""
    return _grant(f"{directory}/{_PROFILE}.qmp", "rw", _QEMU, root)


def lets_libvirtd_run(program: Path | str, *, root: Path = kernel.ROOT) -> bool:
    """Tell whether each profile for a daemon of libvirt lets it run a program; without one it is free to."""
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
    """Yield the texts to begin with and those that they include about libvirt, each file once."""
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
    """Translate a path of AppArmor (apparmor.d(5), "Globbing"); a variable that we do not know is anything."""
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
    except re.error:  # no rule that AppArmor would load
        return re.compile(r"(?!)")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
