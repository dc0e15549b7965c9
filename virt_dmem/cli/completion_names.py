# SPDX-License-Identifier: GPL-2.0-or-later
"""Complete names in a shell: functions for the completion script, and the names that they ask for.

A name is untrusted: it is printed only where it is one printable line, and the shell's function quotes it. What a
domain is called virsh knows faster than we do.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from virt_dmem.ipc.client import Client

__all__ = ["KINDS", "function", "functions", "names"]

KINDS = ("pools", "aliases")
"""What ``names`` can list."""

_BASH = r"""
# prints those of the names on its input that begin with what was typed
_virt_dmem_matching() {
  local name quoted
  while IFS= read -r name; do
    printf -v quoted '%q' "$name"
    [[ -n $name && $name != -* && ( $name == "$1"* || $quoted == "$1"* ) ]] && printf '%s\n' "$quoted"
  done
}
_virt_dmem_pools() { virt-dmem completion --names pools 2>/dev/null | _virt_dmem_matching "$1"; }
_virt_dmem_domains() {
  timeout 1 virsh -q -r -c qemu:///system list --all --name 2>/dev/null | _virt_dmem_matching "$1"
}
# of the domain, which is the first word after the command that is no option
_virt_dmem_aliases() {
  local word words=()
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do [[ $word == -* ]] || words+=("$word"); done
  virt-dmem completion --names aliases --domain "${words[1]}" 2>/dev/null | _virt_dmem_matching "$1"
}
_virt_dmem_nothing() { :; }
_virt_dmem_sizes() {
  local number=${1%%[!0-9]*}
  [[ -n $number ]] && compgen -W "${number}K ${number}M ${number}G ${number}T" -- "$1"
}
_virt_dmem_codes() { compgen -W "CODES" -- "$1"; }
# the last of several, separated by commas
_virt_dmem_columns() { compgen -P "${1%"${1##*,}"}" -W "$2" -- "${1##*,}"; }
"""
_ZSH = r"""
# offers the names on its input; one that begins with '-' would be an option
_virt_dmem_offer() { local -a found; found=(${(f)"$(cat)"}); compadd -- ${found:#-*} }
_virt_dmem_pools() { virt-dmem completion --names pools 2>/dev/null | _virt_dmem_offer }
_virt_dmem_domains() { timeout 1 virsh -q -r -c qemu:///system list --all --name 2>/dev/null | _virt_dmem_offer }
_virt_dmem_aliases() { virt-dmem completion --names aliases --domain "$line[1]" 2>/dev/null | _virt_dmem_offer }
# without it zsh would show a message instead of completing an option
_virt_dmem_nothing() { true }
_virt_dmem_sizes() { local number=${PREFIX%%[^0-9]*}; [[ -n $number ]] && compadd -- $number{K,M,G,T} }
_virt_dmem_codes() { compadd CODES }
_virt_dmem_columns() { _values -s , column ${=1} }
"""


def functions(codes: Iterable[str], columns: dict[str, str]) -> dict[str, str]:
    """Return the functions for each shell; ``columns``: the names of the columns of each command that has some."""
    found = {}
    for shell, text in (("bash", _BASH), ("zsh", _ZSH)):
        argument = '"$1" ' if shell == "bash" else ""
        lines = [
            f'{function("columns", command)}() {{ _virt_dmem_columns {argument}"{listed}"; }}'
            for command, listed in columns.items()
        ]
        found[shell] = "\n".join([text.replace("CODES", " ".join(codes)), *lines])
    return found


def function(kind: str, command: str = "") -> str:
    """Return the name of the function that completes a kind of names, of columns those of a command."""
    return "_".join(["_virt_dmem", kind, *command.replace("-", "_").split()])


def names(kind: str, daemon: Client, domain: str) -> list[str]:
    """Return the names of pools, or the aliases of a domain's extents, as virt-dmemd knows them."""
    if kind == "pools":
        found = [pool["name"] for pool in daemon.call("ListPools")["pools"]]
    else:
        found = [extent["alias"] for extent in daemon.call("ShowDomain", domain=domain)["domain"]["extents"]]
    return [name for name in found if name.isprintable()]
