# SPDX-License-Identifier: GPL-2.0-or-later
"""Build hook: compile the C programs and put them into the wheel."""

from __future__ import annotations

import runpy
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = "virt_dmem/native"


class NativeBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel is put together, also an editable one; a source archive gets the C source alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tag the wheel: any Python 3 (programs, no extension module), this platform."""
        native = Path(self.root) / _NATIVE
        made = runpy.run_path(str(native / "build.py"))
        for program in made["PROGRAMS"]:
            made["build"](program)
            build_data["artifacts"].append(f"/{_NATIVE}/{program}")
        if version != "editable" and (commit := self._commit()):
            record = Path(tempfile.mkdtemp()) / "commit"
            record.write_text(f"{commit}\n", "utf-8")
            build_data["force_include"][str(record)] = "virt_dmem/commit"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def _commit(self) -> str:
        """Return the commit of a checkout, as virt_dmem/version.py does; empty: unknown."""
        command = ["git", "-C", self.root, "describe", "--always", "--dirty", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return done.stdout.strip() if (Path(self.root) / ".git").exists() and done.returncode == 0 else ""
