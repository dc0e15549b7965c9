# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether AppArmor lets each QEMU reach its own domain's extents and monitor, as its rules on disk say.

libvirt makes a domain's profile anew at each start from ``libvirt/TEMPLATE.qemu``, which includes the abstraction
``libvirt-qemu``; so what stands there now is what the next QEMU gets. The profile is named ``libvirt-<uuid>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from virt_dmem import host

__all__ = ["RULES", "enabled", "lets_qemu_in", "lets_qemu_listen", "monitor_rule", "rule"]

RULES = Path("/etc/apparmor.d")
_BEGIN = ("libvirt/TEMPLATE.qemu", "abstractions/libvirt-qemu")
_PROFILE = "libvirt-00000000-0000-0000-0000-000000000000"
_INCLUDE = re.compile(r"^\s*#?include\s+(?:if\s+exists\s+)?<([^>\n]+)>", re.MULTILINE)
_RULE = re.compile(
    r'^\s*(?:(?:owner|allow|audit)\s+)*(?P<quote>"?)(?P<path>[/@][^"\n]*?)(?P=quote)\s+(?P<may>\w+),'
)
_GLOB = re.compile(r"\*\*|\*|\?|@\{profile_name\}|@\{\w+\}|[{},]|\[[^]]*\]|\\.|.", re.DOTALL)


def enabled(*, root: Path = host.ROOT) -> bool:
    """Tell whether this kernel has AppArmor switched on."""
    return _text(root / "sys/module/apparmor/parameters/enabled").strip() == "Y"


def rule(pools_dir: Path | str) -> str:
    """Return the path of our rule, as AppArmor writes it."""
    return f"{pools_dir}/*/@{{profile_name}}/**"


def lets_qemu_in(pools_dir: Path | str, *, root: Path = host.ROOT) -> bool:
    """Tell whether some rule lets a QEMU read and write an extent of its own domain in a pool below ``pools_dir``.

    Any rule will do, not only ours. What is granted by other means (a profile that the administrator wrote for one
    domain, a mode of complaining, an abstraction that is not about libvirt) is not seen.
    """
    return _lets_write(f"{pools_dir}/pool/{_PROFILE}/ram-node0", root)


def monitor_rule(directory: Path | str) -> str:
    """Return the path of our rule for monitors in a directory, as AppArmor writes it."""
    return f"{directory}/@{{profile_name}}.qmp"


def lets_qemu_listen(directory: Path | str, *, root: Path = host.ROOT) -> bool:
    """Tell whether some rule lets a QEMU make its own domain's monitor in a directory; see ``lets_qemu_in``."""
    return _lets_write(f"{directory}/{_PROFILE}.qmp", root)


def _lets_write(path: str, root: Path) -> bool:
    for text in _texts(root / str(RULES)[1:]):
        for line in text.splitlines():
            found = _RULE.match(line)
            if found and {"r", "w"} <= set(found["may"]) and _pattern(found["path"]).fullmatch(path):
                return True
    return False


def _texts(rules: Path) -> Iterator[str]:
    """Yield the text of the template and of what it includes about libvirt, each file once."""
    seen: set[Path] = set()
    to_read = [rules / name for name in _BEGIN]
    while to_read:
        path = to_read.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.is_dir():
            to_read += [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
        elif text := _text(path):
            to_read += [rules / name for name in _INCLUDE.findall(text) if "libvirt" in name]
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
