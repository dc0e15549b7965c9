# SPDX-License-Identifier: GPL-2.0-or-later
"""Restrict a program as its systemd unit does, without systemd: by setpriv and prctl, as given in the unit."""

from __future__ import annotations

from tests.rig.repository import REPOSITORY

__all__ = ["restricted_as", "setting"]

_DENY_WRITE_EXECUTE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # Linux 6.3; before, only systemd's own filter does it
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
os.umask(0o077)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def setting(unit: str, name: str) -> list[str]:
    """Return the words of a setting that a unit has once."""
    lines = (REPOSITORY / "systemd" / unit).read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}="))
    return line.partition("=")[2].split()


def restricted_as(unit: str) -> list[str]:
    """Return a command that executes its arguments with the restrictions of a unit."""
    names = [f"+{name.lower().removeprefix('cap_')}" for name in setting(unit, "CapabilityBoundingSet")]
    assert setting(unit, "NoNewPrivileges") == setting(unit, "MemoryDenyWriteExecute") == ["yes"]
    assert setting(unit, "UMask") == ["0077"]
    setpriv = ["setpriv", "--bounding-set", ",".join(["-all", *names]), "--inh-caps", "-all", "--no-new-privs"]
    return [*setpriv, "/usr/bin/python3", "-c", _DENY_WRITE_EXECUTE]
