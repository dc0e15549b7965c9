# SPDX-License-Identifier: GPL-2.0-or-later
"""Build hook: compile the C helper and put it into the wheel."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = "virt_dmem/native"


class PrefaultBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel is put together, also an editable one; a source archive gets the C source alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tag the wheel: any Python 3 (it is a program, no extension module), this platform."""
        native = Path(self.root) / _NATIVE
        runpy.run_path(str(native / "build.py"))["build_helper"]()
        build_data["artifacts"].append(f"/{_NATIVE}/virt-dmem-prefault")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
